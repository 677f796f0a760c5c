"""Objects too large for one request: parts, then one completion that decides."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from typing import Any

from holdfast_s3.session import S3Session
from holdfast_storage import errors

_log = logging.getLogger(__name__)
PART_BYTES = 32 << 20
_AT_ONCE = 4
_ABORT_S = 30.0


async def upload(
    session: S3Session, key: str, path: str, data: memoryview, how: Mapping[str, Any]
) -> Any:
    """Uploads in parts; on any failure the parts are given up, so that nothing stays.

    Args:
        session: The bucket.
        key: For messages.
        path: The key in the bucket.
        data: Everything.
        how: Metadata; and conditions of the completion, at which the object appears.

    Returns:
        The reply to the completion.
    """
    metadata = {name: how[name] for name in how if name == "Metadata"}
    conditions = {name: how[name] for name in how if name != "Metadata"}
    made = await session.call("CreateMultipartUpload", key, {"Key": path, **metadata})
    which = {"Key": path, "UploadId": made["UploadId"]}
    try:
        parts = await _send(session, key, which, data)
        body = {"MultipartUpload": {"Parts": parts}}
        return await session.once("CompleteMultipartUpload", key, {**which, **body, **conditions})
    except BaseException:
        await _give_up(session, key, which)
        raise


async def _send(
    session: S3Session, key: str, which: Mapping[str, Any], data: memoryview
) -> list[dict[str, Any]]:
    limit = asyncio.Semaphore(_AT_ONCE)
    size = max(PART_BYTES, -(-len(data) // 10_000))  # S3 takes 10,000 parts

    async def part(number: int, start: int) -> dict[str, Any]:
        async with limit:
            piece = {"PartNumber": number, "Body": bytes(data[start : start + size])}
            reply = await session.call("UploadPart", key, {**which, **piece})
            return {"PartNumber": number, "ETag": reply["ETag"]}

    starts = range(0, len(data), size)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(part(n, start)) for n, start in enumerate(starts, 1)]
    except* errors.StorageError as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


async def _give_up(session: S3Session, key: str, which: Mapping[str, Any]) -> None:
    """Aborts the upload even if the caller was cancelled; what remains, a sweep removes."""
    task = asyncio.ensure_future(session.call("AbortMultipartUpload", key, which))
    try:
        async with asyncio.timeout(_ABORT_S):
            await asyncio.shield(task)
    except errors.StorageError:
        _log.debug("could not abort the upload of %s", key, exc_info=True)
    except (asyncio.CancelledError, TimeoutError):
        task.add_done_callback(_quietly)


def _quietly(task: asyncio.Future[Any]) -> None:
    with contextlib.suppress(asyncio.CancelledError):
        task.exception()
