"""The backend: keys below one prefix of one bucket, flat or hierarchical."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast_gcs import detection, settings, uploads
from holdfast_gcs.folders import Folders
from holdfast_gcs.session import GcsSession, Reply
from holdfast_gcs.translation import NoEffectError, explain, not_gcs
from holdfast_metadata import ATTEMPT_FILE
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.settings import resolve_settings
from holdfast_storage.urls import resolve_url
from holdfast_storage.values import (
    ByteRange,
    Capabilities,
    IfAbsent,
    IfVersion,
    IoHints,
    KvTarget,
    Listing,
    ObjectInfo,
    ObjectVersion,
    Precondition,
)

if TYPE_CHECKING:
    from holdfast_storage.commit.strategy import CommitStrategy

_KEY_BYTES = 1024
_DELETES_AT_ONCE = 16
_MINE = "holdfast-put"  # metadata of what is written on condition: which put wrote it
_ITEM = "name,size,generation,updated"
_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)


class GcsBackend(StorageBackend):
    """A prefix of a bucket.

    Whether the bucket is hierarchical is asked at the first use that depends on it;
    `capabilities` says "flat" until then.

    Args:
        url: `gs://bucket/prefix`.
        options: See `holdfast_gcs.settings`.

    Raises:
        InvalidURLError: A setting is unknown or cannot be honoured.
    """

    scheme: ClassVar[str] = "gs"
    environment: ClassVar[tuple[str, ...]] = (
        "CLOUDSDK_", "GCE_METADATA_", "GOOGLE_", "STORAGE_EMULATOR_HOST",
    )  # fmt: skip
    orbax_commits_by_file = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        place = url.rstrip("/").partition("://")[2]
        self.root = f"gs://{place}"
        bucket, _, self._prefix = place.partition("/")
        self.settings = settings.resolve(bucket, options)
        self.capabilities = Capabilities(
            create_if_absent=True,
            compare_and_swap=True,
            rename_prefix=bool(self.settings.hierarchical),
        )
        self.hints = IoHints(
            target_file_bytes=256 << 20,
            max_concurrency=32,
            coalesce_bytes=1 << 20,
            round_trips=True,
        )
        self._session = GcsSession(self.settings, self.root)
        self._folders = Folders(self._session, self.root)

    async def hierarchical(self) -> bool:
        """Whether the bucket has folders; settles `capabilities`."""
        found = await detection.is_hierarchical(self._session)
        if found != self.capabilities.rename_prefix:
            self.capabilities = dataclasses.replace(self.capabilities, rename_prefix=found)
        return found

    # --- keys ----------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        """The key in the bucket."""
        keys.check_key(key, root=self.root)
        path = keys.join(self._prefix, key)
        try:
            size = len(path.encode())
        except UnicodeEncodeError as error:
            raise errors.InvalidKeyError(
                f"GCS holds names in UTF-8: {error.reason}", key=key, root=self.root
            ) from error
        if size > _KEY_BYTES or "\r" in path or "\n" in path:
            raise errors.InvalidKeyError(
                f"GCS holds names of at most {_KEY_BYTES} bytes without line breaks; this one "
                f"has {size}",
                key=key,
                root=self.root,
            )
        return path

    def _below(self, prefix: str) -> str:
        keys.check_prefix(prefix, root=self.root)
        found = keys.join(self._prefix, prefix)
        return f"{found}/" if found else ""

    def _key(self, path: str) -> str | None:
        """The inverse of `_path`; None for what is no key, such as a console's folder mark."""
        key = keys.relative(path, self._prefix)
        try:
            return keys.check_key(key)
        except errors.InvalidKeyError:
            return None

    def _url(self, key: str) -> str:
        return self._session.bucket_url("o", self._path(key))

    # --- reading -------------------------------------------------------------------------

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`. One request."""
        if byte_range is None:
            return (await self.read(key))[1]
        if byte_range.start == byte_range.stop:
            await self.stat(key)
            return b""
        reply = await self._media(
            key, {"Range": f"bytes={byte_range.start}-{byte_range.stop - 1}"}, (200, 206, 416)
        )
        if reply.status == 416:
            return b""
        if reply.status == 200:  # the service sent everything
            return reply.body[byte_range.start : byte_range.stop]
        return reply.body

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`. One request answers both."""
        reply = await self._media(key, {}, (200,))
        version = ObjectVersion(reply.headers["x-goog-generation"])
        modified = parsedate_to_datetime(reply.headers["Last-Modified"]).timestamp()
        return ObjectInfo(key, len(reply.body), version, modified), reply.body

    async def _media(self, key: str, headers: Mapping[str, str], expect: tuple[int, ...]) -> Reply:
        url = self._url(key)

        async def once() -> Reply:
            reply = await self._session.once(
                "read an object", key, "GET", url, query={"alt": "media"}, headers=headers,
                expect=expect,
            )  # fmt: skip
            if reply.status != 416 and "x-goog-generation" not in reply.headers:
                raise self._not_gcs("read an object", key)
            if reply.status == 200 and not _is_whole(reply):
                raise errors.TransientStorageError(
                    "the bytes that came are not the object's", key=key, root=self.root
                )
            return reply

        return await self._session.repeat(once, "read an object", key)

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        doing = "look at an object"
        reply = await self._session.call(doing, key, "GET", self._url(key), query={"fields": _ITEM})
        return self._info(key, self._session.parsed(reply, doing, key))

    def _info(self, key: str, item: Mapping[str, Any]) -> ObjectInfo:
        try:
            # Whole seconds, because a read is told no more.
            modified = float(int(datetime.fromisoformat(item["updated"]).timestamp()))
            return ObjectInfo(key, int(item["size"]), ObjectVersion(item["generation"]), modified)
        except (KeyError, ValueError, TypeError) as error:
            raise self._not_gcs("look at an object", key) from error

    def _not_gcs(self, doing: str, key: str) -> errors.StorageError:
        return not_gcs(self.settings, key=key, root=self.root, doing=doing)

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`. One request per 1,000 objects."""
        async for page in self._pages({"prefix": self._below(prefix)}, prefix):
            for info in self._objects(page):
                yield info

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`. One request per 1,000 entries; no empty folders."""
        prefixes: list[str] = []
        objects: list[ObjectInfo] = []
        query = {"prefix": self._below(prefix), "delimiter": "/"}
        async for page in self._pages(query, prefix):
            found = [self._key(name.rstrip("/")) for name in page.get("prefixes", ())]
            prefixes += [key for key in found if key is not None]
            objects += self._objects(page)
        return Listing(tuple(sorted(prefixes)), tuple(sorted(objects, key=lambda o: o.key)))

    async def _pages(self, query: dict[str, str], key: str) -> AsyncIterator[Any]:
        doing = "list objects"
        fields = f"kind,prefixes,nextPageToken,items({_ITEM})"
        asked = {**query, "maxResults": "1000", "fields": fields}
        while True:
            reply = await self._session.call(
                doing, key, "GET", self._session.bucket_url("o"), query=asked
            )
            page = self._session.parsed(reply, doing, key)
            if page.get("kind") != "storage#objects":  # or anything would be an empty bucket
                raise self._not_gcs(doing, key)
            yield page
            if "nextPageToken" not in page:
                return
            asked["pageToken"] = page["nextPageToken"]

    def _objects(self, page: Any) -> list[ObjectInfo]:
        found = []
        for item in page.get("items", ()):
            key = self._key(item["name"])
            if key is not None:
                found.append(self._info(key, item))
        return found

    # --- writing -------------------------------------------------------------------------

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Precondition | None = None,
        durable: bool = True,
        parents: bool = True,
    ) -> ObjectVersion:
        """See `StorageBackend.put`. One request up to 8 MiB, a resumable session above.

        A conditional put whose reply was lost is asked for again; the refusal that then
        comes back may be of our own success, so the object says whose it is. If it is another's,
        nobody knows whether ours was there in between, and that is what is raised. An upload brings
        its folders along, so `parents=False` can only look before it.
        """
        path = self._path(key)
        if not parents and await self.hierarchical():
            above = keys.parent(path)
            if above and not await self._folders.exists(above):
                raise errors.ObjectNotFoundError("its folder is gone", key=key, root=self.root)
        mine = uuid.uuid4().hex
        conditions = _conditions(condition)
        metadata = {_MINE: mine} if condition else {}
        in_doubt = False

        async def once() -> ObjectVersion | None:
            nonlocal in_doubt
            try:
                return ObjectVersion(
                    await uploads.upload(
                        self._session, key, path, bytes(data), conditions, metadata
                    )
                )
            except errors.PreconditionFailedError as error:
                if not in_doubt:
                    raise self._lost(key, condition) from error
                return await self._written_by(mine, key)
            except NoEffectError:
                raise
            except _UNCERTAIN:
                in_doubt = True
                raise

        version = await self._session.repeat(once, "write an object", key)
        if version is None:
            raise self._unknown(key)
        return version

    async def _written_by(self, mine: str, key: str) -> ObjectVersion | None:
        """The version at `key` if this very put wrote it: equal bytes prove nothing."""
        doing = "look at an object"
        try:
            reply = await self._session.call(
                doing, key, "GET", self._url(key), query={"fields": "generation,metadata"}
            )
        except errors.ObjectNotFoundError:
            return None
        item = self._session.parsed(reply, doing, key)
        written = (item.get("metadata") or {}).get(_MINE) == mine
        return ObjectVersion(item["generation"]) if written else None

    def _unknown(self, key: str) -> errors.StorageError:
        return errors.TransientStorageError(
            "the reply to a conditional put was lost, and what is there now is not ours; whether "
            "ours was there in between is not known",
            key=key,
            root=self.root,
        )

    def _lost(self, key: str, condition: Precondition | None) -> errors.StorageError:
        where = {"key": key, "root": self.root}
        if isinstance(condition, IfAbsent):
            return errors.ObjectExistsError("the object exists", **where)
        return errors.PreconditionFailedError("the object has another version by now", **where)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        try:
            await self._session.call("delete an object", key, "DELETE", self._url(key))
        except errors.ObjectNotFoundError:
            return

    async def delete_prefix(self, prefix: str) -> None:
        """See `StorageBackend.delete_prefix`. Several at once, marks last, then the folders."""
        marks: list[str] = []
        others: list[str] = []
        async for info in self.walk(prefix):
            (marks if keys.leaf(info.key) == ATTEMPT_FILE else others).append(info.key)
        limit = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def remove(key: str) -> None:
            async with limit:
                await self.delete(key)

        for group in (others, marks):
            await asyncio.gather(*(remove(key) for key in group))
        if await self.hierarchical() and self._below(prefix):
            await self._folders.remove_empty_below(self._below(prefix).rstrip("/"))

    async def rename_prefix(self, source: str, destination: str) -> None:
        """See `StorageBackend.rename_prefix`; on hierarchical buckets only.

        The destination is looked at before the rename. Between the two somebody else may
        create it, and what the service then does is not documented: who must not lose that
        race decides by a conditional put first, as `DecidedRenameCommit` does.
        """
        if not await self.hierarchical():
            await super().rename_prefix(source, destination)
        start, end = self._path(source), self._path(destination)
        if not await self._folders.exists(start):
            raise errors.ObjectNotFoundError("no such folder", key=source, root=self.root)
        if not await self._is_free(destination, end):
            raise errors.ObjectExistsError(
                "the destination holds something", key=destination, root=self.root
            )
        if keys.parent(end):
            await self._folders.create(keys.parent(end))
        await self._folders.rename(start, end)

    async def _is_free(self, key: str, path: str) -> bool:
        try:
            await self.stat(key)
        except errors.ObjectNotFoundError:
            if not await self._folders.exists(path):
                return True
            for folder in await self._folders.below(path):
                if not await self._folders.remove_if_empty(folder):
                    return False
            return True
        return False

    # --- the rest ------------------------------------------------------------------------

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`.

        Raises:
            InvalidURLError: TensorStore goes elsewhere in this process; see `settings.agree`.
        """
        settings.agree(self.settings)
        spec = {"driver": "gcs", "bucket": self.settings.bucket, "path": self._below(prefix)}
        context: dict[str, Any] = {
            "gcs_request_retries": {
                "max_retries": self.settings.max_attempts,
                "initial_delay": "200ms",
                "max_delay": "10s",
            },
            "gcs_request_concurrency": {"limit": self.hints.max_concurrency},
        }
        if self.settings.user_project:
            context["gcs_user_project"] = {"project_id": self.settings.user_project}
        return KvTarget(
            spec,
            context,
            self.hints,
            described=self.settings.describe(),
            explain=functools.partial(explain, settings=self.settings),
        )

    async def commit_strategy(self) -> CommitStrategy:
        """A conditional put decides; on a hierarchical bucket a rename then publishes."""
        from holdfast_storage.commit import DecidedRenameCommit, PointerCommit

        return DecidedRenameCommit(self) if await self.hierarchical() else PointerCommit(self)

    async def settle(self, parent: str, listing: Listing) -> bool:
        """See `StorageBackend.settle`."""
        if not await self.hierarchical():
            return False
        from holdfast_storage.commit import DecidedRenameCommit

        return await DecidedRenameCommit(self).settle(parent, listing)

    async def release(self) -> None:
        """See `StorageBackend.release`."""
        await self._session.close()

    async def aclose(self) -> None:
        """See `StorageBackend.aclose`."""
        await self.release()


def _conditions(condition: Precondition | None) -> dict[str, str]:
    match condition:
        case IfAbsent():
            return {"ifGenerationMatch": "0"}
        case IfVersion(version):
            return {"ifGenerationMatch": version.token}
    return {}


def _is_whole(reply: Reply) -> bool:
    """Whether a whole object's bytes are what was stored, where the service says a digest."""
    if reply.headers.get("x-goog-stored-content-encoding", "identity") != "identity":
        return True  # the digest is of the compressed bytes
    for digest in ",".join(reply.headers.getall("x-goog-hash", ())).split(","):
        name, _, told = digest.strip().partition("=")
        if name == "md5":
            found = hashlib.md5(reply.body, usedforsecurity=False).digest()
            return told == base64.b64encode(found).decode()
    return True


def open_backend(url: str, options: Mapping[str, Any]) -> GcsBackend:
    """The factory that the registry calls, for `gs://` and `gcs://`.

    The two are one scheme, as in fsspec: what is configured for the other fills the gaps.
    """
    place = resolve_url(url)
    other = "gcs" if place.scheme == "gs" else "gs"
    return GcsBackend(place.url, resolve_settings(other, options))
