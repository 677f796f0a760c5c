"""Is the bucket hierarchical? Asked once per process, endpoint and bucket."""

from __future__ import annotations

import logging
import os

from holdfast_gcs.session import GcsSession
from holdfast_gcs.translation import no_bucket, translate
from holdfast_storage import errors

_ASKING = "read the storage layout"
_NO_LAYOUT = "this service has no storage layout"
_log = logging.getLogger(__name__)
_answers: dict[tuple[str, str], bool] = {}


async def is_hierarchical(session: GcsSession) -> bool:
    """Whether the bucket has folders; False, with a line in the log, if it may not be asked.

    Raises:
        StorageError: The bucket is absent, or the service does not answer.
    """
    settings = session.settings
    if settings.hierarchical is not None:
        return settings.hierarchical
    asked = (settings.endpoint, settings.bucket)
    if asked not in _answers:
        _answers[asked] = await _ask(session)
    return _answers[asked]


async def _ask(session: GcsSession) -> bool:
    try:
        reply = await session.call(
            _ASKING, "", "GET", session.bucket_url("storageLayout"), expect=(200, 404, 405)
        )
    except errors.StoragePermissionError as error:
        return _taken_for_flat(session, str(error))
    except errors.UnsupportedOperationError:
        return _taken_for_flat(session, _NO_LAYOUT)
    if reply.status == 200:
        layout = session.parsed(reply, _ASKING, "")
        return bool((layout.get("hierarchicalNamespace") or {}).get("enabled"))
    if no_bucket(reply.body):
        where = {"key": "", "root": session.root}
        raise translate(reply.status, reply.body, session.settings, doing=_ASKING, **where)
    return _taken_for_flat(session, _NO_LAYOUT)


def _taken_for_flat(session: GcsSession, why: str) -> bool:
    _log.warning(
        "gs://%s is taken for a flat bucket: %s. To commit by renaming folders, grant "
        "storage.buckets.getStorageLayout or set hns=true; hns=false silences this line",
        session.settings.bucket,
        why,
    )
    return False


def _forget_after_fork() -> None:
    _answers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
