"""Single files: all-or-nothing puts, create-only puts, and compare-and-swap without locks.

Every put writes a temporary file beside its key and then gives it the key's name in one
step; each returns the version it made, which is not to be read back from the key, where
another writer may have been since.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import uuid

from holdfast_local.chain import current, successor, unused, version_of
from holdfast_local.syscalls import NOREPLACE, fsync_folder, renameat2
from holdfast_storage.errors import UnsupportedOperationError

TEMPORARY = re.compile(r"\.(put|next)-[0-9a-f]{32}")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EXDEV}


def write(path: str, data: bytes, *, durable: bool, parents: bool) -> str:
    """Puts `data` at `path`, replacing what is there."""
    temporary, version = _stage(path, data, durable=durable, parents=parents)
    if temporary is not None:
        try:
            _replace(temporary, path, version)
        except BaseException:
            _discard(temporary)
            raise
        if durable:
            fsync_folder(os.path.dirname(path))
    return version


def create(path: str, data: bytes, *, durable: bool, parents: bool) -> str:
    """Puts `data` at `path` if nothing is there; appears with its whole content.

    Raises:
        FileExistsError: Something is there.
        UnsupportedOperationError: The file system cannot create exclusively.
    """
    temporary, version = _stage(path, data, durable=durable, parents=parents)
    if temporary is not None:
        try:
            _create_as(temporary, path, version)
        finally:
            _discard(temporary)
        if durable:
            fsync_folder(os.path.dirname(path))
    return version


def link(source: str, path: str) -> bool:
    """Gives a file a second name; False where the file system has none to give.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: The name is taken.
    """
    make_folders(os.path.dirname(path), durable=False)
    try:
        os.link(source, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            return False
        raise
    return True


def swap(path: str, data: bytes, expected: str) -> str | None:
    """Replaces version `expected` of `path`, durably; None if another is current.

    Raises:
        UnsupportedOperationError: The file system has no hard links.
    """
    try:
        if version_of(current(path)) != expected:
            return None
    except (FileNotFoundError, NotADirectoryError):
        return None
    temporary, version = _write_beside(path, data, durable=True)
    try:
        try:
            _link(temporary, successor(path, expected), version)  # the decision
        except FileExistsError:
            return None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            raise UnsupportedOperationError(
                "this file system has no hard links, so nothing can be replaced on condition"
            ) from error
        # A publication that fails undoes nothing: readers find the link.
        with contextlib.suppress(OSError):
            _replace(temporary, path, version)
    finally:
        _discard(temporary)
    fsync_folder(os.path.dirname(path))  # one folder: link and rename become durable together
    return version


def make_folders(folder: str, *, durable: bool) -> None:
    """Creates a folder and those above it; durable ones are in their parents for good."""
    missing = []
    while folder and not os.path.isdir(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for path in reversed(missing):
        os.makedirs(path, exist_ok=True)
        if durable:
            fsync_folder(os.path.dirname(path))


def _create_as(temporary: str, path: str, version: str) -> None:
    try:
        _link(temporary, path, version)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if not renameat2(temporary, path, NOREPLACE):
            raise UnsupportedOperationError(
                "this file system has neither hard links nor a rename that replaces nothing, "
                "so nothing can be created exclusively on it",
                key=path,
            ) from error


def _link(temporary: str, path: str, version: str) -> None:
    """A hard link; a refusal after the effect (a lost reply on NFS) is a success."""
    try:
        os.link(temporary, path)
    except OSError:
        if not _is_there(path, version):
            raise


def _replace(temporary: str, path: str, version: str) -> None:
    """A rename; a refusal after the effect (a lost reply on NFS) is a success."""
    try:
        os.replace(temporary, path)
    except OSError:
        if not _is_there(path, version):
            raise


def _is_there(path: str, version: str) -> bool:
    try:
        return version_of(os.stat(path)) == version
    except OSError:
        return False


def _stage(path: str, data: bytes, *, durable: bool, parents: bool) -> tuple[str | None, str]:
    """Writes a temporary file beside `path`; None if a new folder took `path` along."""
    try:
        return _write_beside(path, data, durable=durable)
    except FileNotFoundError:
        if not parents:
            raise
    if durable:
        version = _first_in_folder(path, data)
        if version is not None:
            return None, version
    make_folders(os.path.dirname(path), durable=durable)
    return _write_beside(path, data, durable=durable)


def _first_in_folder(path: str, data: bytes) -> str | None:
    """Makes a new folder appear with its first file in it; None if it is there by now.

    So a folder that a killed process began is never without the mark that is put first.
    """
    folder, name = os.path.split(path)
    above = os.path.dirname(folder)
    make_folders(above, durable=True)
    aside = os.path.join(above, f".put-{uuid.uuid4().hex}")
    os.mkdir(aside)
    staged = os.path.join(aside, name)
    try:
        version = _write_file(staged, path, data, durable=True)
        fsync_folder(aside)
        os.rename(aside, folder)
    except OSError as error:
        _discard(staged)
        with contextlib.suppress(OSError):
            os.rmdir(aside)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise
        return None
    fsync_folder(above)
    return version


def _write_beside(path: str, data: bytes, *, durable: bool) -> tuple[str, str]:
    temporary = os.path.join(os.path.dirname(path), f".put-{uuid.uuid4().hex}")
    return temporary, _write_file(temporary, path, data, durable=durable)


def _write_file(temporary: str, path: str, data: bytes, *, durable: bool) -> str:
    """Writes a new file that is to become `path`; returns the version that it will be."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(descriptor, view) :]
            version = unused(path, descriptor, time.time_ns())
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)  # where NFS says that the disk is full
    except BaseException:
        _discard(temporary)
        raise
    return version


def _discard(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
