"""Is the bucket hierarchical? Asked once per process, endpoint and bucket."""

from __future__ import annotations

import json
import logging
import os

from holdfast_gcs.session import GcsSession
from holdfast_storage import errors

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
            "read the storage layout", "", "GET", session.bucket_url("storageLayout")
        )
        return bool((json.loads(reply.body).get("hierarchicalNamespace") or {}).get("enabled"))
    except errors.StoragePermissionError as error:
        _log.warning(
            "gs://%s is taken for a flat bucket: %s. To commit by renaming folders, grant "
            "storage.buckets.getStorageLayout or set hns=true; hns=false silences this line",
            session.settings.bucket,
            error,
        )
    except (errors.ObjectNotFoundError, errors.UnsupportedOperationError):
        _log.debug("gs://%s: this service has no storage layout", session.settings.bucket)
    return False


def _forget_after_fork() -> None:
    _answers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
