"""Operating-system errors as holdfast's, so that a message says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from holdfast_storage import errors

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_EXISTS = {errno.EEXIST, errno.ENOTEMPTY, errno.EISDIR}
_PASSING = {errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT, errno.ESTALE, errno.EBUSY}


def translate(
    error: OSError, *, key: str, root: str, wanted: int | None = None
) -> errors.StorageError:
    """The error of ours that says what `error` means for `key`.

    Args:
        error: What the operating system said.
        key: What it was about.
        root: The backend's root.
        wanted: How many bytes were to be written, if it is known.
    """
    number, where = error.errno, {"key": key, "root": root}
    if number in _FULL:
        return errors.StorageFullError(f"the disk is full{_space(root, wanted)}", **where)
    if number in _REFUSED:
        return errors.StoragePermissionError(f"access refused: {error.strerror}", **where)
    if number in _ABSENT:
        return errors.ObjectNotFoundError("no such object", **where)
    if number in _EXISTS:
        return errors.ObjectExistsError("something is there already", **where)
    if number == errno.EXDEV:
        return errors.StorageError(
            f"{error.filename!r} and {error.filename2!r} lie on different devices (or layers "
            "of an overlay), so one cannot take the other's place in one step; choose a path "
            "whose folders lie on one device",
            **where,
        )
    if number == errno.ENAMETOOLONG:
        return errors.InvalidKeyError("the name is too long for this file system", **where)
    if number in _PASSING:
        return errors.TransientStorageError(f"{error.strerror}", **where)
    return errors.StorageError(f"{error.strerror or error}", **where)


@contextlib.contextmanager
def translated(key: str, root: str, *, wanted: int | None = None) -> Iterator[None]:
    """Turns an `OSError` of the block into ours, with the original as its cause."""
    try:
        yield
    except errors.StorageError:
        raise
    except OSError as error:
        raise translate(error, key=key, root=root, wanted=wanted) from error


def _space(root: str, wanted: int | None) -> str:
    """What was wanted and what is left: bytes, or the number of files if that ran out."""
    path = root
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    said = [f"{wanted:,} bytes were to be written"] if wanted is not None else []
    with contextlib.suppress(OSError):
        left = os.statvfs(path or "/")
        said.append(f"{left.f_bavail * left.f_frsize:,} bytes are free")
        if left.f_files and not left.f_favail:
            said.append("no more files can be created")
    return f" ({', '.join(said)})" if said else ""
