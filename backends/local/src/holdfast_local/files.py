"""Single files: all-or-nothing puts, create-only puts, and compare-and-swap without locks.

A conditional replacement is decided by a hard link, which the kernel creates once only:
`.<name>.next-<version>` is the successor of that version of `<name>`. Publishing it is a
rename, which anyone may be late with: readers follow the chain of successors, so a late
rename shows the newest content all the same. Successor links are never removed while the
file exists, for a writer that sleeps between its check and its link must find the place
taken. A version is the inode, the time set from the clock in nanoseconds, and the size;
with that time no later file can be mistaken for an earlier one whose inode it reuses.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
import uuid

from holdfast_local.syscalls import NOREPLACE, fsync_path, renameat2
from holdfast_storage.errors import UnsupportedOperationError

TEMPORARY = re.compile(r"\.put-[0-9a-f]{32}|\..+\.next-[0-9]+-[0-9]+-[0-9]+")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


def version_of(status: os.stat_result) -> str:
    """The version that a status names."""
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def current(path: str) -> tuple[str, os.stat_result]:
    """The file that holds the newest content of `path`, and its status.

    Raises:
        FileNotFoundError: There is none, or it is a folder.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a file", path)
    where = path
    while True:
        following = _successor(path, version_of(status))
        try:
            status = os.stat(following)
        except FileNotFoundError:
            return where, status
        where = following


def write(path: str, data: bytes, *, durable: bool, parents: bool) -> None:
    """Puts `data` at `path`, replacing what is there."""
    temporary = _stage(path, data, durable=durable, parents=parents)
    if temporary is None:
        return
    try:
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise
    if durable:
        fsync_path(os.path.dirname(path))


def create(path: str, data: bytes, *, durable: bool, parents: bool) -> None:
    """Puts `data` at `path` if nothing is there; appears with its whole content.

    Raises:
        FileExistsError: Something is there.
    """
    temporary = _stage(path, data, durable=durable, parents=parents)
    if temporary is None:
        return
    try:
        _link_once(temporary, path)
    finally:
        _discard(temporary)
    if durable:
        fsync_path(os.path.dirname(path))


def swap(path: str, data: bytes, expected: str) -> bool:
    """Replaces version `expected` of `path`, durably; False if another is current."""
    try:
        _, status = current(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    if version_of(status) != expected:
        return False
    temporary = os.path.join(os.path.dirname(path), f".put-{uuid.uuid4().hex}")
    _write_file(temporary, data, durable=True)
    try:
        os.link(temporary, _successor(path, expected))  # the decision
        fsync_path(os.path.dirname(path))
        os.replace(temporary, path)  # publication: readers no longer need the chain
    except FileExistsError:
        return False
    finally:
        _discard(temporary)
    fsync_path(os.path.dirname(path))
    return True


def _successor(path: str, version: str) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{name}.next-{version}")


def _link_once(temporary: str, path: str) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not renameat2(temporary, path, NOREPLACE):
            raise UnsupportedOperationError(
                "this file system has neither hard links nor a rename that replaces nothing, "
                "so nothing can be created exclusively on it",
                key=path,
            ) from error


def _stage(path: str, data: bytes, *, durable: bool, parents: bool) -> str | None:
    """Writes a temporary file beside `path`; None if a new folder took `path` along."""
    folder = os.path.dirname(path)
    temporary = os.path.join(folder, f".put-{uuid.uuid4().hex}")
    try:
        _write_file(temporary, data, durable=durable)
        return temporary
    except FileNotFoundError:
        if not parents:
            raise
    if durable and _first_in_folder(path, data):
        return None
    make_folders(folder, durable=durable)
    _write_file(temporary, data, durable=durable)
    return temporary


def _first_in_folder(path: str, data: bytes) -> bool:
    """Makes a new folder appear with its first file in it; False if it is there by now.

    So a folder that a killed process began is never without the mark that is put first.
    """
    folder, name = os.path.split(path)
    above = os.path.dirname(folder)
    make_folders(above, durable=True)
    aside = os.path.join(above, f".put-{uuid.uuid4().hex}")
    os.mkdir(aside)
    try:
        _write_file(os.path.join(aside, name), data, durable=True)
        fsync_path(aside)
        os.rename(aside, folder)
    except OSError as error:
        _discard(os.path.join(aside, name))
        os.rmdir(aside)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return False
    fsync_path(above)
    return True


def _write_file(path: str, data: bytes, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        now = time.time_ns()
        os.utime(descriptor, ns=(now, now))
        if durable:
            os.fsync(descriptor)
    except BaseException:
        _discard(path)
        raise
    finally:
        os.close(descriptor)


def make_folders(folder: str, *, durable: bool) -> None:
    """Creates a folder and those above it; durable ones are in their parents for good."""
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        os.makedirs(path, exist_ok=True)
        if durable:
            fsync_path(os.path.dirname(path))


def _discard(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
