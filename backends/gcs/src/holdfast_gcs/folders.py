"""Folders of a hierarchical bucket, through the JSON API.

Nothing here depends on what a rename does to a destination that exists: it is looked at
first, and who commits decides by a conditional put and not by a rename.
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from holdfast_gcs.session import GcsSession
from holdfast_storage import errors

_FIRST_LOOK_S = 0.05
_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)


class Folders:
    """The folders of one bucket. Names are keys in the bucket, without a slash at the end.

    Args:
        session: The bucket.
        root: The backend's root, for messages.
    """

    def __init__(self, session: GcsSession, root: str) -> None:
        self._session = session
        self._root = root

    def _url(self, *path: str) -> str:
        return self._session.bucket_url("folders", *path)

    async def exists(self, name: str) -> bool:
        """Whether the folder is there."""
        try:
            await self._session.call("get a folder", name, "GET", self._url(f"{name}/"))
        except errors.ObjectNotFoundError:
            return False
        return True

    async def create(self, name: str) -> None:
        """Creates a folder and those above it; succeeds if it is there."""
        body = json.dumps({"name": f"{name}/"}).encode()
        await self._session.call(
            "create a folder", name, "POST", self._url(),
            query={"recursive": "true"}, data=body,
            headers={"Content-Type": "application/json"}, expect=(200, 201, 409),
        )  # fmt: skip

    async def remove_if_empty(self, name: str) -> bool:
        """Removes an empty folder; False if something is in it."""
        try:
            reply = await self._session.call(
                "delete a folder", name, "DELETE", self._url(f"{name}/"),
                expect=(200, 204, 409, 412, 400),
            )  # fmt: skip
        except errors.ObjectNotFoundError:
            return True
        return reply.status in (200, 204)

    async def below(self, name: str) -> list[str]:
        """The folder and every one below it, the deepest first."""
        found: list[str] = []
        query = {"prefix": f"{name}/" if name else "", "pageSize": "1000"}
        while True:
            reply = await self._session.call("list folders", name, "GET", self._url(), query=query)
            page = self._session.parsed(reply, "list folders", name)
            found += [item["name"].rstrip("/") for item in page.get("items", ())]
            if "nextPageToken" not in page:
                return sorted(found, key=lambda folder: folder.count("/"), reverse=True)
            query["pageToken"] = page["nextPageToken"]

    async def remove_empty_below(self, name: str) -> None:
        """Removes what a deletion of objects left; a folder with something in it stays."""
        for folder in await self.below(name):
            await self.remove_if_empty(folder)

    async def rename(self, source: str, destination: str) -> None:
        """Moves a folder in one step; the destination is absent, as the caller saw.

        Raises:
            ObjectNotFoundError: The source is absent.
            ObjectExistsError: The service found a destination.
        """
        url = self._session.bucket_url("folders", f"{source}/", "renameTo", "folders")
        url = f"{url}/{self._quoted(destination)}"

        async def once() -> None:
            try:
                reply = await self._session.once(
                    "rename a folder", source, "POST", url, expect=(200, 201, 400, 404, 409, 412)
                )
            except _UNCERTAIN:
                if await self._happened(source, destination):
                    return
                raise
            await self._settle(source, destination, reply)

        await self._session.repeat(once, "rename a folder", source)

    def _quoted(self, name: str) -> str:
        from urllib.parse import quote

        return quote(f"{name}/", safe="")

    async def _happened(self, source: str, destination: str) -> bool:
        """After a lost reply: the move is one step, so half of it is never seen."""
        return not await self.exists(source) and await self.exists(destination)

    async def _settle(self, source: str, destination: str, reply: Any) -> None:
        where = {"key": source, "root": self._root}
        if reply.status in (200, 201):
            operation = self._session.parsed(reply, "rename a folder", source)
            await self._poll(source, destination, operation)
            return
        if reply.status in (404, 409) and await self._happened(source, destination):
            return  # an earlier request of ours, or of whoever finishes the same move
        if reply.status == 404:
            raise errors.ObjectNotFoundError("no such folder", **where)
        if reply.status in (409, 412) and await self.exists(destination):
            raise errors.ObjectExistsError(f"{destination!r} holds something", **where)
        raise errors.TransientStorageError(
            f"the rename was refused: {reply.body[:300].decode(errors='replace')}", **where
        )

    async def _poll(self, source: str, destination: str, operation: dict[str, Any]) -> None:
        """Asks the operation until it ends."""
        name = str(operation.get("name", "")).rpartition("/")[2]
        deadline = time.monotonic() + self._session.settings.timeout_s
        pause = _FIRST_LOOK_S
        while not operation.get("done"):
            if time.monotonic() > deadline:
                raise errors.StorageTimeoutError(
                    "the rename did not end in time", key=source, root=self._root
                )
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)
            operation = await self._look(name, source, destination)
        if "error" in operation and not await self._happened(source, destination):
            raise errors.TransientStorageError(
                f"the rename failed: {operation['error']}", key=source, root=self._root
            )

    async def _look(self, operation: str, source: str, destination: str) -> dict[str, Any]:
        """The operation; where it may not be asked, what became of the folders."""
        doing = "look at a rename"
        url = self._session.bucket_url("operations", operation)
        try:
            reply = await self._session.call(doing, source, "GET", url)
        except (errors.StoragePermissionError, errors.ObjectNotFoundError):
            return {"done": await self._happened(source, destination)}
        return self._session.parsed(reply, doing, source)
