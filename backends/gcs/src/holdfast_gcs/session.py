"""Requests to one bucket: gcsfs's session and credentials, one request per call.

gcsfs finds credentials and opens the HTTP session. The requests are made on that session
directly: gcsfs's own calls repeat conditional writes without telling, and its hierarchical
mode falls back from an atomic rename to copies with a warning.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from holdfast_gcs.settings import GcsSettings
from holdfast_gcs.translation import NoEffectError, not_gcs, translate
from holdfast_storage import errors
from holdfast_storage.per_loop import PerLoop
from holdfast_storage.retry import RetryPolicy

if TYPE_CHECKING:
    from multidict import CIMultiDictProxy

T = TypeVar("T")
_UNREACHED_ATTEMPTS = 4
# Endpoint and bucket of whoever answered this process: each save opens a backend of its own,
# and one that begins while the store restarts must have the patience of the others.
_reached: set[tuple[str | None, str]] = set()
_LIMITED_S = 1.0  # one object takes about one write a second
_LONGEST_WAIT_S = 30.0
_REFRESH_AHEAD = timedelta(minutes=10)  # sooner than gcsfs, which would block the event loop
_NO_FOLDERS_OF_ITS_OWN = "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """A successful reply, read to its end."""

    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


class GcsSession:
    """A session for each event loop.

    Args:
        settings: How the bucket is reached.
        root: The backend's root, for messages.
    """

    def __init__(self, settings: GcsSettings, root: str) -> None:
        self.settings = settings
        self.root = root
        self._systems: PerLoop[Any] = PerLoop()
        self._place = (settings.endpoint, settings.bucket)

    async def _open(self) -> Any:
        try:
            made = await asyncio.to_thread(self._make, asyncio.get_running_loop())
        except Exception as error:
            raise self._no_credentials(error) from error
        session = await made._set_session()
        # aiohttp sends an idempotent request again when a kept connection breaks, which turns
        # a lost reply into a refusal without a trace of doubt.
        session._retry_connection = False
        return made

    def _make(self, loop: asyncio.AbstractEventLoop) -> Any:
        """Looks for credentials too, which may ask the machine's metadata."""
        os.environ.setdefault(_NO_FOLDERS_OF_ITS_OWN, "false")
        from gcsfs.core import GCSFileSystem  # the plain one, whatever the package exports
        from google.auth.compute_engine import Credentials
        from google.auth.exceptions import DefaultCredentialsError

        def made(token: Any) -> Any:
            return GCSFileSystem(
                token=token,
                endpoint_url=self.settings.endpoint,
                asynchronous=True,
                skip_instance_cache=True,
                use_listings_cache=False,
                loop=loop,
            )

        if self.settings.token == "cloud":  # gcsfs would look for the machine at one address alone
            return made(Credentials())  # type: ignore[no-untyped-call]
        if self.settings.token is not None:
            return made(self.settings.token)
        try:  # gcsfs's own search has a cache of tokens that TensorStore knows nothing of
            return made("google_default")
        except DefaultCredentialsError as error:
            if os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
                raise
            _log.warning("%s: requests are not signed: %s", self.root, error)
            return made("anon")

    def _no_credentials(self, error: BaseException) -> errors.StorageError:
        from google.auth.exceptions import TransportError

        causes = list(_chain(error))
        said = str(causes[-1]) or type(causes[-1]).__name__
        if any(isinstance(cause, TransportError) for cause in causes):
            return NoEffectError(
                f"Google's token service does not answer: {said} ({self.settings.describe()})",
                root=self.root,
            )
        return errors.StoragePermissionError(
            f"no valid Google credentials: {said}; run gcloud auth application-default "
            "login, set GOOGLE_APPLICATION_CREDENTIALS, or read a public bucket with token=anon "
            f"({self.settings.describe()})",
            root=self.root,
        )

    async def close(self) -> None:
        """Closes the running loop's session."""
        found = self._systems.pop()
        if found is not None and found._session is not None:
            await found._session.close()

    async def _headers(self, system: Any) -> dict[str, str]:
        if _is_fresh(system.credentials.credentials):
            return dict(system._get_headers(None))
        try:
            return dict(await asyncio.to_thread(system._get_headers, None))
        except Exception as error:
            raise self._no_credentials(error) from error

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
        if self._place not in _reached:  # a mistyped endpoint should not take a minute to be told
            attempts = min(attempts, _UNREACHED_ATTEMPTS)
        policy = RetryPolicy(attempts=attempts, deadline_s=self.settings.timeout_s)
        return await policy.run(call, what=doing, key=key, root=self.root)

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

        where = {"key": key, "root": self.root}
        system = await self._systems.get(self._open)
        target = self._target(url, query)
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
            refused = isinstance(error, aiohttp.ClientConnectorError)
            kind = NoEffectError if refused else errors.TransientStorageError
            raise kind(
                f"{doing}: {str(error) or type(error).__name__} ({self.settings.describe()})",
                **where,
            ) from error
        _reached.add(self._place)
        if reply.status not in expect:
            await self._respect(reply.status, reply.headers)
            raise translate(reply.status, body, self.settings, doing=doing, **where)
        return Reply(reply.status, reply.headers, body)

    def _target(self, url: str, query: Mapping[str, str] | None) -> Any:
        from yarl import URL

        if "?" in url:  # an upload's own address, which is complete
            return URL(url, encoded=True)
        asked = dict(query or {})
        if self.settings.user_project:
            asked["userProject"] = self.settings.user_project
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in asked.items())
        return URL(f"{url}?{text}" if text else url, encoded=True)

    def parsed(self, reply: Reply, doing: str, key: str) -> dict[str, Any]:
        """The reply's JSON object.

        Raises:
            StorageError: It is something else, so this is not GCS.
        """
        try:
            found = json.loads(reply.body)
        except ValueError as error:
            raise not_gcs(self.settings, key=key, root=self.root, doing=doing) from error
        if not isinstance(found, dict):
            raise not_gcs(self.settings, key=key, root=self.root, doing=doing)
        return found

    async def _respect(self, status: int, headers: Mapping[str, str]) -> None:
        """Waits as the service asks, beside the pause of the repetition."""
        asked = headers.get("Retry-After", "")
        if asked.isdigit():
            await asyncio.sleep(min(float(asked), _LONGEST_WAIT_S))
        elif status == 429:
            await asyncio.sleep(_LIMITED_S)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and what caused it."""
    while error is not None:
        yield error
        error = error.__cause__


def _is_fresh(credentials: Any) -> bool:
    """Whether signing makes no request of its own."""
    if credentials is None:
        return True
    expiry = credentials.expiry
    soon = datetime.now(UTC).replace(tzinfo=None) + _REFRESH_AHEAD
    return bool(credentials.valid) and (expiry is None or expiry > soon)
