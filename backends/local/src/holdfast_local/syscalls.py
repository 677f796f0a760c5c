"""The two renames that POSIX lacks: one that replaces nothing, and one that exchanges."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
from collections.abc import Callable

NOREPLACE = 1
EXCHANGE = 2
_AT_FDCWD = -100
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some FUSE and CIFS mounts


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    """The C library's renameat2, if there is one (Linux with glibc 2.28 or musl 1.2)."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    one = (ctypes.c_int, ctypes.c_char_p)
    function.argtypes = (*one, *one, ctypes.c_uint)
    return function


def known() -> bool:
    """Whether this system has renameat2; a file system may refuse its flags all the same."""
    return _renameat2() is not None


def renameat2(source: str, destination: str, flags: int) -> bool:
    """Renames with flags; False if this system or file system does not know them.

    Raises:
        OSError: The rename failed.
    """
    function = _renameat2()
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(destination), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), source, None, destination)


def fsync_folder(path: str) -> None:
    """Makes a folder's entries durable, where the file system can sync a folder at all."""
    try:
        fsync_path(path)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def fsync_path(path: str) -> None:
    """Makes a file or a folder's entries durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
