"""How bytes become an object: one request, or a resumable session for large ones."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

from holdfast_gcs.session import GcsSession, Reply
from holdfast_gcs.translation import not_gcs
from holdfast_storage import errors

ONE_REQUEST_BYTES = 8 << 20
CHUNK_BYTES = 32 << 20  # a multiple of 256 KiB, as the service asks
_TYPE = "application/octet-stream"
_DOING = "write an object"


async def upload(
    session: GcsSession,
    key: str,
    name: str,
    data: bytes,
    conditions: Mapping[str, str],
    metadata: Mapping[str, str],
) -> str:
    """Uploads once, without repetition of what decides, and returns the generation.

    A resumable session that is not finished leaves nothing visible and expires by itself.
    """
    about = {"name": name, "metadata": dict(metadata), "contentType": _TYPE}
    if len(data) <= ONE_REQUEST_BYTES:
        reply = await _multipart(session, key, about, data, conditions)
    else:
        reply = await _resumable(session, key, about, data, conditions)
    written = session.parsed(reply, _DOING, key)
    if "generation" not in written:
        raise not_gcs(session.settings, key=key, root=session.root, doing=_DOING)
    return str(written["generation"])


async def _multipart(
    session: GcsSession,
    key: str,
    about: Mapping[str, object],
    data: bytes,
    conditions: Mapping[str, str],
) -> Reply:
    border = uuid.uuid4().hex
    head = (
        f"--{border}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
        f"{json.dumps(about)}\r\n--{border}\r\nContent-Type: {_TYPE}\r\n\r\n"
    )
    body = b"".join((head.encode(), data, f"\r\n--{border}--\r\n".encode()))
    return await session.once(
        _DOING, key, "POST", session.bucket_url("o", upload=True),
        query={"uploadType": "multipart", "fields": "generation", **conditions}, data=body,
        headers={"Content-Type": f'multipart/related; boundary="{border}"'},
    )  # fmt: skip


async def _resumable(
    session: GcsSession,
    key: str,
    about: Mapping[str, object],
    data: bytes,
    conditions: Mapping[str, str],
) -> Reply:
    opened = await session.once(
        "start an upload", key, "POST", session.bucket_url("o", upload=True),
        query={"uploadType": "resumable", **conditions}, data=json.dumps(about).encode(),
        headers={"Content-Type": "application/json; charset=UTF-8"},
    )  # fmt: skip
    where = opened.headers.get("Location", "")
    if "?" not in where:
        raise not_gcs(session.settings, key=key, root=session.root, doing="start an upload")
    view = memoryview(data)
    start = 0
    while True:
        stop = min(len(data), start + CHUNK_BYTES)
        reply = await session.once(
            _DOING, key, "PUT", where, data=bytes(view[start:stop]),
            headers={"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"},
            expect=(200, 201, 308, 404, 410),
        )  # fmt: skip
        if reply.status in (200, 201):
            return reply
        held = _held(reply)
        if reply.status != 308 or held <= start:
            raise errors.TransientStorageError(
                f"the upload was lost at byte {start} and starts again", key=key, root=session.root
            )
        start = held


def _held(reply: Reply) -> int:
    """How many bytes the service has: it may keep fewer than it was sent."""
    last = reply.headers.get("Range", "").rpartition("-")[2]
    return int(last) + 1 if last.isdigit() else 0
