"""TensorStore's errors as holdfast's: it names them in words inside a ValueError."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from holdfast_storage import errors

_FULL = re.compile(r"RESOURCE_EXHAUSTED|No space left|quota exceeded", re.IGNORECASE)
_REFUSED = re.compile(r"PERMISSION_DENIED|UNAUTHENTICATED|Permission denied|Read-only file system")
_PASSING = re.compile(r"UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|Connection (refused|reset)")


@contextlib.contextmanager
def writing(label: str, described: str = "") -> Iterator[None]:
    """Translates what a write raises.

    Args:
        label: Where the arrays are.
        described: How the store is reached, without secrets.
    """
    try:
        yield
    except errors.StorageError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError) as error:
        raise _storage(error, f"writing arrays failed: {error}", label, described) from error


@contextlib.contextmanager
def reading(leaf: str, label: str, described: str = "") -> Iterator[None]:
    """Translates what a read raises: what is not the store's fault is damage."""
    try:
        yield
    except errors.StorageError:
        raise
    except (ValueError, OSError, RuntimeError, NotImplementedError, IndexError) as error:
        found = _storage(error, f"reading {leaf!r} failed: {error}", label, described)
        if type(found) is not errors.StorageError:
            raise found from error
        raise errors.DamagedCheckpointError(
            f"the array of leaf {leaf!r} cannot be read: {error}", leaf=leaf, root=label, file=leaf
        ) from error


def _storage(error: Exception, message: str, label: str, described: str) -> errors.StorageError:
    text = str(error)
    message += f" ({described})" if described else ""
    if _FULL.search(text):
        return errors.StorageFullError(message, root=label)
    if _REFUSED.search(text):
        return errors.StoragePermissionError(message, root=label)
    if _PASSING.search(text):
        return errors.TransientStorageError(message, root=label)
    return errors.StorageError(message, root=label)
