"""Operating-system errors as holdfast's, so that a message says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from holdfast_storage import errors

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_EXISTS = {errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR}
_PASSING = {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY}


def translate(error: OSError, *, key: str, root: str) -> errors.StorageError:
    """The error of ours that says what `error` means for `key`."""
    number, where = error.errno, {"key": key, "root": root}
    if number in _FULL:
        return errors.StorageFullError(f"the disk is full{_free(root)}", **where)
    if number in _REFUSED:
        return errors.StoragePermissionError(f"access refused: {error.strerror}", **where)
    if number in _ABSENT:
        return errors.ObjectNotFoundError("no such object", **where)
    if number in _EXISTS:
        return errors.ObjectExistsError("something is there already", **where)
    if number == errno.EXDEV:
        return errors.StorageError(
            "a checkpoint's folder and its parent lie on different devices, so it cannot be "
            "moved into place in one step; choose a path on one device",
            **where,
        )
    if number == errno.ENAMETOOLONG:
        return errors.InvalidKeyError("the name is too long for this file system", **where)
    if number in _PASSING:
        return errors.TransientStorageError(f"{error.strerror}", **where)
    return errors.StorageError(f"{error.strerror or error}", **where)


@contextlib.contextmanager
def translated(key: str, root: str) -> Iterator[None]:
    """Turns an `OSError` of the block into ours, with the original as its cause."""
    try:
        yield
    except errors.StorageError:
        raise
    except OSError as error:
        raise translate(error, key=key, root=root) from error


def _free(root: str) -> str:
    path = root
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    try:
        return f" ({shutil.disk_usage(path or '/').free:,} bytes are free)"
    except OSError:
        return ""
