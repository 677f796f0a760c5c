"""Whole folders: moving, exchanging, syncing, listing and removing them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

from holdfast_local import files
from holdfast_local.syscalls import EXCHANGE, NOREPLACE, fsync_path, renameat2
from holdfast_metadata import ATTEMPT_FILE

_FULL_DESTINATION = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}


def move(source: str, destination: str) -> None:
    """Renames a folder to where nothing is, durably.

    Without `renameat2`, rename(2) does: onto a folder that holds anything it fails, and a
    checkpoint is never empty. An empty folder that appears in the instant between the look
    and the rename would be replaced; nothing is lost by that.

    Raises:
        FileExistsError: The destination holds anything.
        FileNotFoundError: The source is gone.
    """
    before = os.stat(source)
    try:
        if not renameat2(source, destination, NOREPLACE):
            _plain_move(source, destination)
    except OSError as error:
        # A lost reply (NFS) reports a failure of what has happened.
        if not _has_moved(source, destination, before):
            if error.errno == errno.ENOENT and not os.path.isdir(os.path.dirname(destination)):
                files.make_folders(os.path.dirname(destination), durable=True)
                move(source, destination)
                return
            raise
    for folder in {os.path.dirname(source), os.path.dirname(destination)}:
        fsync_path(folder)


def _plain_move(source: str, destination: str) -> None:
    if os.path.lexists(destination):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination)
    try:
        os.rename(source, destination)
    except OSError as error:
        if error.errno in _FULL_DESTINATION:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination) from error
        raise


def _has_moved(source: str, destination: str, before: os.stat_result) -> bool:
    try:
        there = os.stat(destination)
    except OSError:
        return False
    same = (there.st_dev, there.st_ino) == (before.st_dev, before.st_ino)
    return same and not os.path.lexists(source)


def exchange(first: str, second: str) -> bool:
    """Swaps two folders, durably; False if this system or file system cannot."""
    before = os.stat(first)
    os.stat(second)
    try:
        if not renameat2(first, second, EXCHANGE):
            return False
    except OSError:
        try:
            there = os.stat(second)
        except OSError:
            there = None
        if there is None or (there.st_dev, there.st_ino) != (before.st_dev, before.st_ino):
            raise
    for folder in {os.path.dirname(first), os.path.dirname(second)}:
        fsync_path(folder)
    return True


def walk(base: str) -> Iterator[str]:
    """Yields files below a folder; folders that are links are not entered."""
    try:
        entries = sorted(os.scandir(base), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if files.TEMPORARY.fullmatch(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif entry.is_file():
            yield entry.path


def sync(base: str, run: Callable[[Callable[[str], None], list[str]], None]) -> None:
    """Makes everything below `base` durable: files, then folders bottom-up, then `base`'s entry.

    Args:
        base: The folder.
        run: Applies a function to many paths, perhaps at once.
    """
    folders, found = [], []
    for folder, _, names in os.walk(base, topdown=False):
        folders.append(folder)
        found += [os.path.join(folder, name) for name in names]
    run(fsync_path, found)
    for folder in folders:
        fsync_path(folder)
    if folders:
        fsync_path(os.path.dirname(base))


def remove(base: str) -> None:
    """Removes a folder: the mark of an attempt last, so that a half-removed one is found."""
    marks = []
    for folder, _, names in os.walk(base, topdown=False):
        for name in names:
            path = os.path.join(folder, name)
            if name == ATTEMPT_FILE:
                marks.append(path)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)
        if not any(os.path.dirname(mark).startswith(folder) for mark in marks):
            _remove_folder(folder)
    for mark in marks:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(mark)
    for folder, _, _ in os.walk(base, topdown=False):
        _remove_folder(folder)


def _remove_folder(folder: str) -> None:
    try:
        if os.path.islink(folder):
            os.unlink(folder)
        else:
            os.rmdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise


def remove_old_temporaries(folder: str, older_than: float) -> int:
    """Removes what killed puts left in a folder; says how many files."""
    removed = 0
    try:
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return 0
    for entry in entries:
        if not entry.name.startswith(".put-") or not files.TEMPORARY.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            if time.time() - entry.stat().st_mtime < older_than:
                continue
            if entry.is_dir(follow_symlinks=False):
                remove(entry.path)
            else:
                os.unlink(entry.path)
            removed += 1
    return removed
