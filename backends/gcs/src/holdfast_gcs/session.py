"""Requests to one bucket: gcsfs's session and credentials, one request per call.

gcsfs finds credentials and opens the HTTP session. The requests are made on that session
directly: gcsfs's own calls repeat conditional writes without telling, and its hierarchical
mode falls back from an atomic rename to copies with a warning.
"""

from __future__ import annotations

import asyncio
import io
import os
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

from holdfast_gcs.settings import GcsSettings
from holdfast_gcs.translation import translate
from holdfast_storage import errors
from holdfast_storage.retry import RetryPolicy

T = TypeVar("T")
_UNREACHED_ATTEMPTS = 4
_LIMITED_S = 1.0  # one object takes about one write a second
_NO_FOLDERS_OF_ITS_OWN = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"


@dataclass(frozen=True)
class Reply:
    """A successful reply, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class GcsSession:
    """A session per event loop, because connections belong to the loop that made them.

    Args:
        settings: How the bucket is reached.
        root: The backend's root, for messages.
    """

    def __init__(self, settings: GcsSettings, root: str) -> None:
        self.settings = settings
        self._root = root
        self._systems: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = (
            weakref.WeakKeyDictionary()
        )
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )
        self._reached = False

    async def _system(self) -> Any:
        loop = asyncio.get_running_loop()
        lock = self._locks.setdefault(loop, asyncio.Lock())
        async with lock:
            found = self._systems.get(loop)
            if found is None:
                found = self._systems[loop] = await self._open(loop)
            return found

    async def _open(self, loop: asyncio.AbstractEventLoop) -> Any:
        os.environ.setdefault(_NO_FOLDERS_OF_ITS_OWN, "false")
        import gcsfs

        def make() -> Any:  # looks for credentials, which may ask the machine's metadata
            return gcsfs.GCSFileSystem(
                project=self.settings.project or "",
                token=self.settings.token,
                endpoint_url=self.settings.endpoint,
                asynchronous=True,
                skip_instance_cache=True,
                use_listings_cache=False,
                loop=loop,
            )

        try:
            made = await asyncio.to_thread(make)
        except Exception as error:
            raise errors.StoragePermissionError(
                f"no Google credentials: {error}; run gcloud auth application-default login, set "
                "GOOGLE_APPLICATION_CREDENTIALS, or read a public bucket with token=anon "
                f"({self.settings.describe()})",
                root=self._root,
            ) from error
        session = await made._set_session()
        # aiohttp sends an idempotent request again when a kept connection breaks, which turns
        # a lost reply into a refusal without a trace of doubt.
        session._retry_connection = False
        return made

    async def close(self) -> None:
        """Closes the running loop's session."""
        found = self._systems.pop(asyncio.get_running_loop(), None)
        if found is not None and found._session is not None:
            await found._session.close()

    async def _headers(self, system: Any) -> dict[str, str]:
        credentials = getattr(system.credentials, "credentials", None)
        if credentials is None or credentials.valid:
            return dict(system._get_headers(None))
        return dict(await asyncio.to_thread(system._get_headers, None))

    def bucket_url(self, *path: str, upload: bool = False) -> str:
        """A URL below the bucket; the parts are percent-encoded here."""
        service = "upload/storage/v1" if upload else "storage/v1"
        parts = "/".join(quote(part, safe="") for part in path)
        base = f"{self.settings.endpoint}/{service}/b/{quote(self.settings.bucket, safe='')}"
        return f"{base}/{parts}" if parts else base

    async def call(self, doing: str, key: str, method: str, url: str, **how: Any) -> Reply:
        """Makes one request that is safe to repeat, and repeats it while that may help."""

        async def once() -> Reply:
            return await self.once(doing, key, method, url, **how)

        return await self.repeat(once, doing, key)

    async def repeat(self, call: Callable[[], Awaitable[T]], doing: str, key: str) -> T:
        """Repeats a call as the settings say."""
        attempts = self.settings.max_attempts
        if not self._reached:  # a mistyped endpoint should not take a minute to be told
            attempts = min(attempts, _UNREACHED_ATTEMPTS)
        policy = RetryPolicy(attempts=attempts, deadline_s=self.settings.timeout_s)
        return await policy.run(call, what=doing, key=key, root=self._root)

    async def once(
        self,
        doing: str,
        key: str,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        data: bytes | None = None,
        expect: tuple[int, ...] = (200, 201, 204, 206),
    ) -> Reply:
        """Makes one request once. A timeout or a dropped connection leaves its effect open."""
        import aiohttp
        from yarl import URL

        where = {"key": key, "root": self._root}
        system = await self._system()
        asked = dict(query or {})
        if self.settings.user_project:
            asked["userProject"] = self.settings.user_project
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items())
        target = URL(f"{url}?{text}" if text else url, encoded=True)
        sent = {**await self._headers(system), **(headers or {})}
        content = io.BytesIO(data) if data is not None else None
        limit = aiohttp.ClientTimeout(total=self.settings.timeout_s, sock_connect=10, sock_read=60)
        try:
            async with system.session.request(
                method, target, headers=sent, data=content, timeout=limit, allow_redirects=False
            ) as reply:
                body = await reply.read()
        except TimeoutError as error:
            raise errors.StorageTimeoutError(
                f"no answer to {doing} in time ({self.settings.describe()})", **where
            ) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise errors.TransientStorageError(
                f"{doing}: {str(error) or type(error).__name__} ({self.settings.describe()})",
                **where,
            ) from error
        self._reached = True
        if reply.status not in expect:
            await self._respect(reply.status, reply.headers)
            raise translate(reply.status, body, self.settings, doing=doing, **where)
        return Reply(reply.status, reply.headers, body)

    async def _respect(self, status: int, headers: Mapping[str, str]) -> None:
        """Waits as the service asks, beside the pause of the repetition."""
        if status == 429:
            asked = headers.get("Retry-After", "")
            await asyncio.sleep(min(float(asked), 30.0) if asked.isdigit() else _LIMITED_S)
