"""Which file holds the newest content of a key, and replacing it if it is still that one.

A conditional replacement is decided by a hard link, which the kernel makes once only: the
successor link of a version of a key, named by a digest of both. Publishing the decision is
a rename onto the key, with which anyone may be late: readers follow the chain of
successors from whatever version they find, so a late rename shows the newest content all
the same. No lock file, nothing to break after a crash.

A version is inode, modification time in nanoseconds (set from the clock when the file is
written) and size. Link and rename keep all three, so the successor link and the published
file are one version.

Successor links are never removed while their folder lives. To remove one would let a
writer win twice: it found version 1 current, fell asleep, versions 2 and 3 were decided,
and with the link of version 1 gone its own link would succeed. Nobody can know that such
a writer does not exist. The price is one directory entry per swap, and what is swapped is
a handful of records.

For the same reason a file must never be given a version that has a successor already
(`unused`), and a key that is swapped must not also be put unconditionally, or deleted and
created again, while a swap is under way: the late rename would bring its content back. The
commit protocol changes its records by conditional puts alone and removes whole folders; a
folder that was moved away took the late writer's temporary file along.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from typing import BinaryIO

_LONGEST = 100_000
_TRIES = 16
_GRANULE_NS = 2_000_000_000  # the coarsest time that file systems keep (FAT)


def version_of(status: os.stat_result) -> str:
    """The version that a status names."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def successor(path: str, version: str) -> str:
    """Where the replacement of `version` of `path` is linked; short, whatever the name is."""
    folder, name = os.path.split(path)
    digest = hashlib.blake2b(os.fsencode(f"{name}\0{version}"), digest_size=16)
    return os.path.join(folder, f".next-{digest.hexdigest()}")


def current(path: str, *, chained: bool = True) -> os.stat_result:
    """The status of the newest content of `path`.

    Args:
        path: The file.
        chained: False if its folder was listed and holds no successor link.

    Raises:
        FileNotFoundError: There is none, or it is no regular file.
    """
    status = os.stat(path)
    _require_file(status, path)
    for _ in range(_LONGEST if chained else 0):
        try:
            status = os.stat(successor(path, version_of(status)))
        except FileNotFoundError:
            return status
    return status


def open_current(path: str) -> tuple[BinaryIO, os.stat_result]:
    """Opens the newest content of `path`, and says which version it is.

    A file is opened before its successor is looked for: what has none by then was newest
    at that moment, whoever renames meanwhile.

    Raises:
        FileNotFoundError: There is none, or it is no regular file.
    """
    where = path
    for _ in range(_LONGEST):
        file, status = _open(where)
        where = successor(path, version_of(status))
        if not os.path.lexists(where):
            return file, status
        file.close()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def unused(path: str, descriptor: int, now_ns: int) -> str:
    """Dates a new file so that `path` never had its version before; returns the version.

    Where a file system keeps times coarsely, or a clock was set back, a file could get
    inode, time and size of one that was replaced: a stale condition would hold, and
    readers would follow an old successor. So each file is later than the one it follows.
    """
    try:
        earliest = os.stat(path).st_mtime_ns + 1
    except (FileNotFoundError, NotADirectoryError):
        earliest = 0
    first = max(now_ns, earliest)
    for attempt in range(_TRIES):
        # The second half: this file system keeps no later date (FAT ends in 2107, ext4 with
        # small inodes in 2038), so any that nobody used must do.
        later = attempt < _TRIES // 2
        now = first + attempt * _GRANULE_NS if later else secrets.randbelow(now_ns)
        with contextlib.suppress(OSError):  # some FUSE mounts keep no dates at all
            os.utime(descriptor, ns=(now, now))
        status = os.fstat(descriptor)
        kept = status.st_mtime_ns
        if abs(kept - now) > _GRANULE_NS or (later and kept < earliest):
            continue
        if not os.path.lexists(successor(path, version_of(status))):
            break
    return version_of(status)


def _open(path: str) -> tuple[BinaryIO, os.stat_result]:
    # Without O_NONBLOCK a named pipe would hold the thread for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        _require_file(status, path)
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb"), status


def _require_file(status: os.stat_result, path: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
