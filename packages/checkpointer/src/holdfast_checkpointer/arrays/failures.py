"""TensorStore's errors as holdfast's: it names them in words inside a ValueError."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from holdfast_storage import errors
from holdfast_storage.values import KvTarget

_FULL = re.compile(
    r"RESOURCE_EXHAUSTED:|.*(No space left|quota exceeded)", re.IGNORECASE | re.DOTALL
)
_REFUSED = re.compile(
    r"(PERMISSION_DENIED|UNAUTHENTICATED):|.*(Permission denied|Read-only file system)", re.DOTALL
)
_PASSING = re.compile(
    r"(UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED):|.*Connection (refused|reset)", re.DOTALL
)
# These tell of the machine or the way to it, and nothing of the bytes (EIO is UNKNOWN).
_UNPROVEN = re.compile(
    r"(UNKNOWN|INTERNAL|CANCELLED|UNIMPLEMENTED):|.*Input/output error", re.DOTALL
)
# What TensorStore appends: name and value, the value escaped as in C.
_APPENDED = re.compile(r" \[(\w+)='((?:[^'\\]|\\.)*)'\]", re.DOTALL)
_ESCAPED = re.compile(r"\\(['\"\\])")
_ABOUT_AN_OBJECT = (errors.ObjectNotFoundError, errors.PreconditionFailedError)


@contextlib.contextmanager
def writing(label: str, target: KvTarget) -> Iterator[None]:
    """Translates what a write raises.

    Args:
        label: Where the arrays are.
        target: How they are reached.
    """
    try:
        yield
    except errors.StorageError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise _explained(error, "", label, target) or _classified(
            error, f"writing arrays failed: {_noted(error)}", label, target
        ) from error


@contextlib.contextmanager
def reading(leaf: str, label: str, target: KvTarget) -> Iterator[None]:
    """Translates what a read raises: what is proven to be no fault of the store is damage."""
    try:
        yield
    except errors.StorageError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError, IndexError) as error:
        explained = _explained(error, leaf, label, target)
        if explained is not None:
            raise explained from error
        said = _shortened(error)
        found = _classified(error, f"reading {leaf!r} failed: {said}", label, target)
        if type(found) is not errors.StorageError or _UNPROVEN.match(said):
            raise found from error
        raise errors.DamagedCheckpointError(
            f"the array of leaf {leaf!r} cannot be read: {said}", leaf=leaf, root=label, file=leaf
        ) from error


def _explained(
    error: Exception, leaf: str, label: str, target: KvTarget
) -> errors.StorageError | None:
    """What the store itself makes of the reply, if it was one and is not about an object."""
    appended = dict(_APPENDED.findall(str(error)))
    status = appended.get("http_response_code", "")
    if target.explain is None or not status.isdigit() or int(status) < 300:
        return None
    body = _ESCAPED.sub(r"\1", appended.get("http_response_body", ""))
    found = target.explain(int(status), body, key=leaf, root=label)
    return None if isinstance(found, _ABOUT_AN_OBJECT) else found


def _shortened(error: Exception) -> str:
    """The message without what TensorStore appends; that stays in the cause."""
    return _APPENDED.sub("", str(error))


def _noted(error: Exception) -> str:
    """The message with what was noted of it: which leaf it was."""
    return " ".join([_shortened(error), *getattr(error, "__notes__", ())])


def _classified(
    error: Exception, message: str, label: str, target: KvTarget
) -> errors.StorageError:
    text = _shortened(error)
    message += f" ({target.described})" if target.described else ""
    if _FULL.match(text):
        return errors.StorageFullError(message, root=label)
    if _REFUSED.match(text):
        return errors.StoragePermissionError(message, root=label)
    if _PASSING.match(text):
        return errors.TransientStorageError(message, root=label)
    return errors.StorageError(message, root=label)
