"""Requests to one bucket: s3fs's session, one request per call, our errors and repetition.

s3fs finds credentials, region and certificates and opens the client. The requests are made
on that client directly: s3fs's own calls make two requests where one does, repeat
conditional writes without telling, and translate a lost condition differently per store.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from holdfast_s3.settings import S3Settings
from holdfast_s3.translation import WRONG_REGION, translate
from holdfast_storage import errors
from holdfast_storage.per_loop import PerLoop
from holdfast_storage.retry import RETRYABLE, RetryPolicy

T = TypeVar("T")
_log = logging.getLogger(__name__)
_UNREACHED_ATTEMPTS = 4
# Endpoint and bucket of whoever answered this process: each save opens a backend of its own,
# and one that begins while the store restarts must have the patience of the others.
_reached: set[tuple[str | None, str]] = set()
# What every S3 says in a reply, by operation; one of them is enough.
_EXPECTED = {
    "GetObject": ("ETag",),
    "HeadObject": ("ETag",),
    "PutObject": ("ETag",),
    "UploadPart": ("ETag",),
    "CompleteMultipartUpload": ("ETag",),
    "CreateMultipartUpload": ("UploadId",),
    "ListObjectsV2": ("IsTruncated", "KeyCount", "Name"),
}


class S3Session:
    """A client for each event loop.

    Args:
        settings: How the bucket is reached.
        root: The backend's root, for messages.
    """

    def __init__(self, settings: S3Settings, root: str) -> None:
        self.settings = settings
        self._root = root
        self._filesystems: PerLoop[Any] = PerLoop()
        self._place = (settings.endpoint, settings.bucket)
        self.region: str | None = settings.region

    async def client(self) -> Any:
        """The aiobotocore client of the running loop."""
        return (await self._filesystems.get(self._open))._s3

    async def _open(self) -> Any:
        import s3fs
        from botocore.exceptions import BotoCoreError

        from holdfast_s3.connections import SingleTrySession

        arguments = self.settings.filesystem_arguments()
        arguments["config_kwargs"]["http_session_cls"] = SingleTrySession
        filesystem = s3fs.S3FileSystem(
            session=_sdk_session(self.settings.profile),
            asynchronous=True,
            skip_instance_cache=True,
            use_listings_cache=False,
            loop=asyncio.get_running_loop(),
            **arguments,
        )
        try:
            await filesystem.set_session()
        except BotoCoreError as error:
            found = translate(error, self.settings, key="", root=self._root, doing="sign in")
            raise found or errors.StorageError(str(error), root=self._root) from error
        filesystem._s3.meta.events.register_first("needs-retry.s3", self._note_redirect)
        return filesystem

    async def close(self) -> None:
        """Closes the running loop's client."""
        found = self._filesystems.pop()
        if found is not None and found._s3 is not None:
            await found._s3creator.__aexit__(None, None, None)

    async def call(
        self,
        doing: str,
        key: str,
        arguments: Mapping[str, Any],
        *,
        receive: Callable[[Any], Awaitable[T]] | None = None,
    ) -> Any:
        """Makes one request that is safe to repeat, and repeats it while that may help.

        Args:
            doing: The API operation, such as `GetObject`.
            key: What it is about, for messages.
            arguments: Of the operation, without the bucket.
            receive: Reads the reply's body; a body that breaks off is asked for again.

        Raises:
            StorageError: In holdfast's words, with the SDK's as its cause.
        """

        async def once() -> Any:
            return await self.once(doing, key, arguments, receive=receive)

        return await self.repeat(once, doing, key)

    async def repeat(self, call: Callable[[], Awaitable[T]], doing: str, key: str) -> T:
        """Repeats a call as the settings say."""
        attempts = self.settings.max_attempts
        if self._place not in _reached:  # a mistyped endpoint should not take a minute to be told
            attempts = min(attempts, _UNREACHED_ATTEMPTS)
        policy = RetryPolicy(attempts=attempts, deadline_s=self.settings.timeout_s)
        return await policy.run(call, what=doing, key=key, root=self._root)

    async def once(
        self,
        doing: str,
        key: str,
        arguments: Mapping[str, Any],
        *,
        receive: Callable[[Any], Awaitable[Any]] | None = None,
    ) -> Any:
        """Makes one request once. A timeout or a dropped connection leaves its effect open."""
        client = await self.client()
        method = getattr(client, _method(doing))
        extra = {"RequestPayer": "requester"} if self.settings.requester_pays else {}
        try:
            reply = await method(Bucket=self.settings.bucket, **arguments, **extra)
            self._check(doing, key, reply)
            result = reply if receive is None else await receive(reply)
        except errors.StorageError:
            raise
        except Exception as error:
            found = translate(error, self.settings, key=key, root=self._root, doing=doing)
            if found is None:
                raise
            if not isinstance(found, RETRYABLE):
                _reached.add(self._place)
            raise found from error
        _reached.add(self._place)
        self._note_region(reply)
        return result

    def _check(self, doing: str, key: str, reply: Mapping[str, Any]) -> None:
        """A web page parses as an empty answer, and an empty listing would mean absence."""
        expected = _EXPECTED.get(doing, ())
        if expected and not any(name in reply for name in expected):
            raise errors.StorageError(
                f"the reply to {doing} is not S3's; is the endpoint right? "
                f"({self.settings.describe()})",
                key=key,
                root=self._root,
            )

    def _note_redirect(self, response: Any = None, **_: Any) -> None:
        """The SDK follows a redirect to the bucket's region silently; the arrays follow this."""
        if response is None:
            return
        _, parsed = response
        error = parsed.get("Error", {})
        if error.get("Code") in WRONG_REGION:
            headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
            right = headers.get("x-amz-bucket-region") or error.get("Region")
            if right and right != self.region:
                _log.warning(
                    "%s is in region %s, not %s; set it to save a request",
                    self._root,
                    right,
                    self.region,
                )
                self.region = str(right)

    def _note_region(self, reply: Mapping[str, Any]) -> None:
        """S3 says where a bucket is; the control plane is redirected, the arrays are not."""
        headers = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        said = headers.get("x-amz-bucket-region")
        if said:
            self.region = str(said)


@functools.cache
def _loader() -> Any:
    """The SDK's description of S3, a file of megabytes, is read once per process."""
    import botocore.loaders

    return botocore.loaders.create_loader()


def _sdk_session(profile: str | None) -> Any:
    """A new session, which finds credentials as they are now."""
    import aiobotocore.session

    session = aiobotocore.session.AioSession(profile=profile)
    session.register_component("data_loader", _loader())
    return session


def _method(doing: str) -> str:
    """`ListObjectsV2` as the client spells it: `list_objects_v2`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in doing).lstrip("_")
