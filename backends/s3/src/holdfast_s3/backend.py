"""The backend: keys below one prefix of one bucket."""

from __future__ import annotations

import functools
import logging
import os
import uuid
from collections.abc import AsyncIterator, Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast_metadata import ATTEMPT_FILE
from holdfast_s3 import probe, settings, uploads
from holdfast_s3.credentials import DataCredentials
from holdfast_s3.session import S3Session
from holdfast_s3.translation import explain
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import layout
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

_log = logging.getLogger(__name__)
_KEY_BYTES = 1024
_ONE_REQUEST_BYTES = 64 << 20
_DELETE_AT_ONCE = 1000
_MINE = "holdfast-put"  # metadata of what is written on condition: which put wrote it
_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)
# TensorStore's HTTP has no deadline of its own; a connection that moves nothing ends.
_STALLED = {
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "60",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "20",
}


class S3Backend(StorageBackend):
    """A prefix of a bucket.

    Args:
        url: `s3://bucket/prefix`.
        options: See `holdfast_s3.settings`.

    Raises:
        InvalidURLError: A setting is unknown or cannot be honoured.
    """

    scheme: ClassVar[str] = "s3"
    environment: ClassVar[tuple[str, ...]] = ("AWS_",)
    orbax_commits_by_file = True

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self.root = url.rstrip("/")
        bucket, _, self._prefix = self.root.partition("://")[2].partition("/")
        self.settings = settings.resolve(bucket, options)
        self.capabilities = Capabilities(
            create_if_absent=True, compare_and_swap=True, rename_prefix=False
        )
        self.hints = IoHints(
            target_file_bytes=256 << 20,
            max_concurrency=32,
            coalesce_bytes=1 << 20,
            round_trips=True,
        )
        self._session = S3Session(self.settings, self.root)
        self._credentials = DataCredentials(self.settings)
        self._unsafe = False
        for name, value in _STALLED.items():
            os.environ.setdefault(name, value)
        if self.settings.ca_bundle:
            os.environ.setdefault("TENSORSTORE_CA_BUNDLE", self.settings.ca_bundle)

    # --- keys ----------------------------------------------------------------------------

    def _path(self, key: str) -> str:
        """The key in the bucket."""
        keys.check_key(key, root=self.root)
        path = keys.join(self._prefix, key)
        try:
            size = len(path.encode())
        except UnicodeEncodeError as error:
            raise errors.InvalidKeyError(
                f"S3 holds keys in UTF-8: {error.reason}", key=key, root=self.root
            ) from error
        if size > _KEY_BYTES:
            raise errors.InvalidKeyError(
                f"S3 holds keys of at most {_KEY_BYTES} bytes; this one has {size}",
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

    # --- reading -------------------------------------------------------------------------

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`. One request."""
        path = self._path(key)
        if byte_range is None:
            return (await self.read(key))[1]
        if byte_range.start == byte_range.stop:
            await self.stat(key)
            return b""
        wanted = f"bytes={byte_range.start}-{byte_range.stop - 1}"

        async def receive(reply: Any) -> bytes:
            data: bytes = await _body(reply)
            if "ContentRange" in reply:
                return data
            return data[byte_range.start : byte_range.stop]  # the store sent everything

        try:
            found: bytes = await self._session.call(
                "GetObject", key, {"Key": path, "Range": wanted}, receive=receive
            )
        except errors.StorageError as error:
            if _status(error) == 416:
                return b""
            raise
        return found

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`. One request answers both."""

        async def receive(reply: Any) -> tuple[ObjectInfo, bytes]:
            data = await _body(reply)
            version = ObjectVersion(reply["ETag"])
            return ObjectInfo(key, len(data), version, _seconds(reply)), data

        found: tuple[ObjectInfo, bytes] = await self._session.call(
            "GetObject", key, {"Key": self._path(key)}, receive=receive
        )
        return found

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        reply = await self._session.call("HeadObject", key, {"Key": self._path(key)})
        version = ObjectVersion(reply["ETag"])
        return ObjectInfo(key, reply["ContentLength"], version, _seconds(reply))

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`. One request per 1,000 objects."""
        async for page in self._pages({"Prefix": self._below(prefix)}, prefix):
            for info in self._objects(page):
                yield info

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`. One request per 1,000 entries."""
        below = self._below(prefix)
        prefixes: list[str] = []
        objects: list[ObjectInfo] = []
        async for page in self._pages({"Prefix": below, "Delimiter": "/"}, prefix):
            found = [self._key(p["Prefix"].rstrip("/")) for p in page.get("CommonPrefixes", ())]
            prefixes += [key for key in found if key is not None]
            objects += self._objects(page)
        return Listing(tuple(sorted(prefixes)), tuple(sorted(objects, key=lambda o: o.key)))

    async def _pages(self, arguments: dict[str, Any], key: str) -> AsyncIterator[Any]:
        more: dict[str, Any] = {}
        while True:
            page = await self._session.call("ListObjectsV2", key, {**arguments, **more})
            yield page
            if not page.get("IsTruncated"):
                return
            more = {"ContinuationToken": page["NextContinuationToken"]}

    def _objects(self, page: Any) -> list[ObjectInfo]:
        found = []
        for entry in page.get("Contents", ()):
            key = self._key(entry["Key"])
            if key is not None:
                version = ObjectVersion(entry["ETag"])
                modified = _seconds(entry)
                found.append(ObjectInfo(key, entry["Size"], version, modified))
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
        """See `StorageBackend.put`. One request up to 64 MiB, parts above.

        A conditional put whose reply was lost is asked for again; the refusal that then
        comes back may be of our own success, so the object says whose it is. If it is another's,
        nobody knows whether ours was there in between, and that is what is raised.
        """
        path = self._path(key)
        if condition is not None and self._unsafe:
            await self._look_first(key, condition)
        mine = uuid.uuid4().hex
        how = {**_conditions(condition), "Metadata": {_MINE: mine}} if condition else {}
        in_doubt = False

        async def once() -> ObjectVersion | None:
            nonlocal in_doubt
            try:
                return await self._put_once(key, path, data, how)
            except errors.PreconditionFailedError as error:
                if not in_doubt:
                    raise self._lost(key, condition) from error
                return await self._written_by(mine, key, path)
            except errors.ObjectNotFoundError as error:
                raise self._lost(key, condition) from error  # If-Match on what is gone
            except _UNCERTAIN:
                in_doubt = True
                raise

        version = await self._session.repeat(once, "PutObject", key)
        if version is None:
            raise self._unknown(key)
        return version

    async def _put_once(
        self, key: str, path: str, data: bytes, how: Mapping[str, Any]
    ) -> ObjectVersion:
        if len(data) > _ONE_REQUEST_BYTES:
            reply = await uploads.upload(self._session, key, path, memoryview(data), how)
        else:
            body = {"Key": path, "Body": bytes(data), "ContentType": "application/octet-stream"}
            reply = await self._session.once("PutObject", key, {**body, **how})
        return ObjectVersion(reply["ETag"])

    async def _written_by(self, mine: str, key: str, path: str) -> ObjectVersion | None:
        """The version at `key` if this very put wrote it: equal bytes prove nothing."""
        try:
            reply = await self._session.call("HeadObject", key, {"Key": path})
        except errors.ObjectNotFoundError:
            return None
        return ObjectVersion(reply["ETag"]) if reply["Metadata"].get(_MINE) == mine else None

    def _unknown(self, key: str) -> errors.StorageError:
        return errors.TransientStorageError(
            "the reply to a conditional put was lost, and another's object is there now; whether "
            "ours was there in between is not known",
            key=key,
            root=self.root,
        )

    def _lost(self, key: str, condition: Precondition | None) -> errors.StorageError:
        where = {"key": key, "root": self.root}
        if isinstance(condition, IfAbsent):
            return errors.ObjectExistsError("the object exists", **where)
        if isinstance(condition, IfVersion):
            return errors.PreconditionFailedError(
                f"the object is no longer version {condition.version.token}", **where
            )
        return errors.StorageError("the bucket does not exist or refuses the object", **where)

    async def _look_first(self, key: str, condition: Precondition) -> None:
        """With `unsafe_commit`: finds what is there already, not what races with this."""
        try:
            there: ObjectVersion | None = (await self.stat(key)).version
        except errors.ObjectNotFoundError:
            there = None
        wanted = condition.version if isinstance(condition, IfVersion) else None
        if there != wanted:
            raise self._lost(key, condition)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        try:
            await self._session.call("DeleteObject", key, {"Key": self._path(key)})
        except errors.ObjectNotFoundError:
            return

    async def delete_prefix(self, prefix: str) -> None:
        """See `StorageBackend.delete_prefix`. A thousand objects per request, marks last."""
        marks: list[str] = []
        others: list[str] = []
        async for info in self.walk(prefix):
            (marks if keys.leaf(info.key) == ATTEMPT_FILE else others).append(info.key)
        for group in (others, marks):
            for start in range(0, len(group), _DELETE_AT_ONCE):
                await self._delete_many(group[start : start + _DELETE_AT_ONCE], prefix)

    async def _delete_many(self, group: list[str], prefix: str) -> None:
        if len(group) == 1:
            await self.delete(group[0])
            return
        objects = [{"Key": self._path(key)} for key in group]
        try:
            reply = await self._session.call(
                "DeleteObjects", prefix, {"Delete": {"Objects": objects, "Quiet": True}}
            )
        except errors.StoragePermissionError:
            raise
        except (errors.UnsupportedOperationError, errors.StorageError):
            # Stores differ in what they want for this request; one by one always works.
            _log.debug("deleting one by one below %s", prefix, exc_info=True)
            reply = {"Errors": objects}
        for left in reply.get("Errors", ()):
            key = self._key(left["Key"])
            if key is not None:
                await self.delete(key)

    async def abort_uploads(self, prefix: str, *, older_than: float) -> int:
        """See `StorageBackend.abort_uploads`. The age is by the store's own clock.

        Of the uploads below a prefix only those into an attempt are holdfast's.
        """
        arguments: dict[str, Any] = {"Prefix": self._below(prefix)}
        aborted = 0
        while True:
            try:
                page = await self._session.call("ListMultipartUploads", prefix, arguments)
            except (errors.StoragePermissionError, errors.UnsupportedOperationError):
                _log.debug("unfinished uploads of %s cannot be listed", self.root, exc_info=True)
                return aborted
            now = _now_by(page)
            for found in page.get("Uploads", ()):
                old = now - int(found["Initiated"].timestamp()) >= older_than
                if old and layout.in_attempt(found["Key"]):
                    which = {"Key": found["Key"], "UploadId": found["UploadId"]}
                    aborted += await self._abort_upload(which)
            if not page.get("IsTruncated"):
                return aborted
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page["NextUploadIdMarker"]

    async def _abort_upload(self, which: dict[str, Any]) -> int:
        try:
            await self._session.once("AbortMultipartUpload", which["Key"], which)
        except errors.StorageError:
            _log.debug("could not abort %s", which, exc_info=True)
            return 0
        return 1

    # --- the rest ------------------------------------------------------------------------

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`."""
        chosen = self.settings
        spec: dict[str, Any] = {
            "driver": "s3",
            "bucket": chosen.bucket,
            "path": self._below(prefix),
            "aws_credentials": self._credentials.spec(),
        }
        endpoint = chosen.endpoint or self._dotted_endpoint()
        if endpoint:
            spec["endpoint"] = endpoint
        if self._session.region:
            spec["aws_region"] = self._session.region
        if chosen.requester_pays:
            spec["requester_pays"] = True
        context = {
            "s3_request_retries": {
                "max_retries": chosen.max_attempts, "initial_delay": "200ms", "max_delay": "10s",
            },
            "s3_request_concurrency": {"limit": self.hints.max_concurrency},
        }  # fmt: skip
        return KvTarget(
            spec,
            context,
            self.hints,
            described=chosen.describe(),
            explain=functools.partial(explain, settings=chosen),
        )

    def _dotted_endpoint(self) -> str | None:
        """On AWS with the bucket in the path, for both planes alike."""
        if self.settings.path_style and self._session.region:
            return f"https://s3.{self._session.region}.amazonaws.com"
        return None

    async def commit_strategy(self) -> CommitStrategy:
        """A conditional put of the record decides; that the store honours it is asked first.

        Raises:
            UnsupportedOperationError: It does not, and `unsafe_commit` is not set.
        """
        from holdfast_storage.commit.pointer import PointerCommit

        problem = await probe.conditions_problem(self._session, self._below(""))
        if problem and not self.settings.unsafe_commit:
            raise errors.UnsupportedOperationError(
                f"this store ignores the conditions that make a commit safe: {problem}. Two "
                "writers could both believe that they won, and OCDBT loses keys without an "
                "error. Use a store that honours them, or accept the risk where only one job "
                f"ever writes: unsafe_commit=true ({self.settings.describe()})",
                root=self.root,
            )
        if problem and not self._unsafe:
            _log.warning("%s: committing although %s (unsafe_commit)", self.root, problem)
            self._unsafe = True
        return PointerCommit(self)

    async def release(self) -> None:
        """See `StorageBackend.release`."""
        await self._session.close()

    async def aclose(self) -> None:
        """See `StorageBackend.aclose`."""
        await self.release()


async def _body(reply: Any) -> bytes:
    """Reads the whole body; one that breaks off raises."""
    async with reply["Body"] as stream:
        data: bytes = await stream.read()
    expected = reply.get("ContentLength")
    if expected is not None and len(data) != expected:
        raise ConnectionError(f"the body has {len(data)} of {expected} bytes")
    return data


def _conditions(condition: Precondition | None) -> dict[str, str]:
    match condition:
        case IfAbsent():
            return {"IfNoneMatch": "*"}
        case IfVersion(version):
            return {"IfMatch": version.token}
    return {}


def _seconds(found: Mapping[str, Any]) -> float:
    """When it was written, in whole seconds: a listing knows more digits than a read does."""
    return float(int(found["LastModified"].timestamp()))


def _status(error: errors.StorageError) -> int:
    response = getattr(error.__cause__, "response", None) or {}
    return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _now_by(reply: Any) -> float:
    """The store's time, as it says in a reply."""
    said = reply.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if said:
        return parsedate_to_datetime(said).timestamp()
    return 0.0  # unknown: nothing is old enough


def open_backend(url: str, options: Mapping[str, Any]) -> S3Backend:
    """The factory that the registry calls."""
    return S3Backend(resolve_url(url).url, options)
