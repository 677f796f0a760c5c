"""What GCS says, as holdfast's errors."""

from __future__ import annotations

import json

from holdfast_gcs.settings import GcsSettings
from holdfast_storage import errors

_NO_BUCKET = "The specified bucket does not exist"
_PLAIN = ("No such object", "Not Found", _NO_BUCKET)
_HASTE = frozenset(("rateLimitExceeded", "userRateLimitExceeded"))


class NoEffectError(errors.TransientStorageError):
    """A failure that may pass, of a request that certainly had no effect."""


def translate(
    status: int, body: bytes, settings: GcsSettings, *, key: str, root: str, doing: str
) -> errors.StorageError:
    """The error of ours for a reply that is not a success."""
    where = {"key": key, "root": root}
    said = message(body)
    if status == 412:
        return errors.PreconditionFailedError("the object is not what was expected", **where)
    if status == 501:
        return errors.UnsupportedOperationError(
            f"{doing}: the service has no such call ({settings.describe()})", **where
        )
    if status == 429 or (status == 403 and _is_haste(body)):
        return NoEffectError(
            f"{doing}: {status}: {said or 'too many requests'} ({settings.describe()})", **where
        )
    if status == 408 or status >= 500:
        return errors.TransientStorageError(
            f"{doing}: {status}: {said or 'no message'} ({settings.describe()})", **where
        )
    if status in (401, 403):
        return errors.StoragePermissionError(
            f"access refused: {said or status}; {doing} needs that permission, or other "
            f"credentials ({settings.describe()})",
            **where,
        )
    if said is None:  # a web server's page; its 404 proves nothing about the object
        return not_gcs(settings, doing=doing, **where)
    if status == 404 and no_bucket(body):
        return errors.StorageError(
            f"the bucket {settings.bucket!r} does not exist ({settings.describe()}); create "
            "it first, holdfast makes none",
            **where,
        )
    if status == 404:
        return errors.ObjectNotFoundError("no such object", **where)
    advice = "; set requester_pays to the project that pays" if "requester pays" in said else ""
    return errors.StorageError(
        f"{doing}: {status}: {said}{advice} ({settings.describe()})", **where
    )


def explain(
    status: int, body: str, settings: GcsSettings, *, key: str, root: str
) -> errors.StorageError:
    """The error for a reply that TensorStore got, which moves the arrays."""
    return translate(status, body.encode(), settings, key=key, root=root, doing="moving arrays")


def not_gcs(settings: GcsSettings, *, key: str, root: str, doing: str) -> errors.StorageError:
    """The error for a reply that makes no sense."""
    return errors.StorageError(
        f"the reply to {doing} is not GCS's; is the endpoint right? ({settings.describe()})",
        key=key,
        root=root,
    )


def no_bucket(body: bytes) -> bool:
    """Whether a 404 is about the bucket. An absent object's message holds its name."""
    said = message(body) or ""
    return said.startswith(_NO_BUCKET)


def _is_haste(body: bytes) -> bool:
    """Whether a 403 is about the rate of requests, which older limits answer so."""
    try:
        reasons = {detail["reason"] for detail in json.loads(body)["error"]["errors"]}
    except (ValueError, KeyError, TypeError):
        return False
    return bool(reasons & _HASTE)


def message(body: bytes) -> str | None:
    """The API's message; None if the reply is not the API's."""
    try:
        error = json.loads(body)["error"]
        return str(error["message"])
    except (ValueError, KeyError, TypeError):
        # Media requests answer absence in plain words.
        text = body.decode(errors="replace")
        return text.strip() if text.startswith(_PLAIN) else None
