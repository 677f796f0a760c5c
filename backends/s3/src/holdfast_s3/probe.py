"""Does this store honour conditions? Asked before the first commit, once per process.

Stores that speak S3 and ignore `If-None-Match` or `If-Match` answer 200 to both, and two
writers then both believe that they won. Nothing short of asking finds them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid

from holdfast_s3.session import S3Session
from holdfast_storage import errors
from holdfast_storage.commit.layout import PROBE_PREFIX

_log = logging.getLogger(__name__)
_answers: dict[tuple[str | None, str], str] = {}  # endpoint and bucket: "" or what is wrong


async def conditions_problem(session: S3Session, prefix: str) -> str:
    """What is wrong with the store's conditions; "" if they hold.

    Args:
        session: The bucket.
        prefix: Where a small object may be written for a moment, ending in `/` or empty.

    Raises:
        StorageError: The bucket cannot be written at all.
    """
    asked = (session.settings.endpoint, session.settings.bucket)
    if asked not in _answers:
        _answers[asked] = await _ask(session, prefix)
    return _answers[asked]


async def _ask(session: S3Session, prefix: str) -> str:
    key = f"{prefix}{PROBE_PREFIX}{uuid.uuid4().hex}"
    try:
        return await _try_conditions(session, key)
    finally:
        await asyncio.shield(_remove(session, key))


async def _try_conditions(session: S3Session, key: str) -> str:
    etag = (await session.call("PutObject", key, {"Key": key, "Body": b""}))["ETag"]
    if await _accepted(session, key, {"IfNoneMatch": "*"}):
        return "it creates an object that exists already (If-None-Match: * is ignored)"
    if not await _accepted(session, key, {"IfMatch": etag}):
        return "it refuses the right version (If-Match with the current ETag answers 412)"
    if await _accepted(session, key, {"IfMatch": '"00000000000000000000000000000000"'}):
        return "it replaces another version than the one named (If-Match is ignored)"
    return ""


async def _accepted(session: S3Session, key: str, condition: dict[str, str]) -> bool:
    try:
        await session.call("PutObject", key, {"Key": key, "Body": b"", **condition})
    except errors.PreconditionFailedError:
        return False
    return True


async def _remove(session: S3Session, key: str) -> None:
    try:
        await session.call("DeleteObject", key, {"Key": key})
    except errors.StorageError:
        _log.debug("could not remove %s; a sweep will", key, exc_info=True)


def _forget_after_fork() -> None:
    _answers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
