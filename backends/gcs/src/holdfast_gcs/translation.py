"""What GCS says, as holdfast's errors."""

from __future__ import annotations

import json

from holdfast_gcs.settings import GcsSettings
from holdfast_storage import errors


def translate(
    status: int, body: bytes, settings: GcsSettings, *, key: str, root: str, doing: str
) -> errors.StorageError:
    """The error of ours for a reply that is not a success."""
    where = {"key": key, "root": root}
    said = message(body)
    if status == 404:
        if said is not None and "bucket" in said and "does not exist" in said:
            return errors.StorageError(
                f"the bucket {settings.bucket!r} does not exist ({settings.describe()}); create "
                "it first, holdfast makes none",
                **where,
            )
        if said is None:  # a web server's page: absence must be proven
            return _not_gcs(settings, doing, where)
        return errors.ObjectNotFoundError("no such object", **where)
    if status == 412:
        return errors.PreconditionFailedError("the object is not what was expected", **where)
    if status in (401, 403):
        return errors.StoragePermissionError(
            f"access refused: {said or status}; {doing} needs that permission, or other "
            f"credentials ({settings.describe()})",
            **where,
        )
    if status in (408, 429) or status >= 500:
        return errors.TransientStorageError(f"{doing}: {status}: {said or 'no message'}", **where)
    if said is None:
        return _not_gcs(settings, doing, where)
    return errors.StorageError(f"{doing}: {status}: {said} ({settings.describe()})", **where)


def _not_gcs(settings: GcsSettings, doing: str, where: dict[str, str]) -> errors.StorageError:
    return errors.StorageError(
        f"the reply to {doing} is not GCS's; is the endpoint right? ({settings.describe()})",
        **where,
    )


def message(body: bytes) -> str | None:
    """The API's message; None if the reply is not the API's."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        # Media requests answer absence in plain words.
        text = body.decode(errors="replace")
        return text.strip() if text.startswith(("No such object", "Not Found")) else None
