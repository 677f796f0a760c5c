"""Whole folders: moving, exchanging, syncing, listing and removing them."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterator

from holdfast_local import files
from holdfast_local.syscalls import EXCHANGE, NOREPLACE, fsync_folder, fsync_path, renameat2
from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE

_FULL_DESTINATION = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR}
_ABSENT = (FileNotFoundError, NotADirectoryError)
_LEADS_NOWHERE = {errno.ELOOP, errno.EACCES}  # asked of a link; a folder itself never says it
_MARKS = (COMMIT_FILE, ATTEMPT_FILE)  # removed last, in this order


def move(source: str, destination: str) -> None:
    """Renames a folder to where nothing is, durably; creates no folder.

    Without `renameat2`, rename(2) does: onto a folder that holds anything it fails, and a
    checkpoint is never empty. An empty folder that appears in the instant between the look
    and the rename would be replaced; nothing is lost by that.

    Raises:
        FileExistsError: The destination holds anything.
        FileNotFoundError: The source, or the folder to move it into, is gone.
    """
    before = os.stat(source)
    try:
        if not renameat2(source, destination, NOREPLACE):
            _plain_move(source, destination)
    except OSError:
        # A lost reply (NFS) reports a failure of what has happened.
        if not _has_moved(source, destination, before):
            raise
    for folder in {os.path.dirname(source), os.path.dirname(destination)}:
        fsync_folder(folder)


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
    return _is_at(destination, before) and not os.path.lexists(source)


def _is_at(path: str, before: os.stat_result) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (before.st_dev, before.st_ino)


def exchange(first: str, second: str) -> bool:
    """Swaps two folders, durably; False if this system or file system cannot."""
    before = os.stat(first)
    os.stat(second)
    try:
        if not renameat2(first, second, EXCHANGE):
            return False
    except OSError as error:
        if not _is_at(second, before):
            if error.errno == errno.EXDEV and os.stat(second).st_dev == before.st_dev:
                return False  # one of them lies in a lower layer of an overlay
            raise
    for folder in {os.path.dirname(first), os.path.dirname(second)}:
        fsync_folder(folder)
    return True


def entries(folder: str) -> tuple[list[os.DirEntry[str]], bool]:
    """What is in a folder, sorted, without our temporary names; empty if it is absent.

    Returns:
        The entries, and whether any of the files may have a successor.
    """
    found = sorted(_scan(folder), key=lambda entry: entry.name)
    visible = [entry for entry in found if not files.TEMPORARY.fullmatch(entry.name)]
    return visible, any(entry.name.startswith(".next-") for entry in found)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    return _asked(entry.is_dir)


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a regular file, or a link to one."""
    return _asked(entry.is_file)


def _asked(question: Callable[[], bool]) -> bool:
    """A link that leads nowhere is nothing, and hides nothing of what lies beside it."""
    try:
        return question()
    except OSError as error:
        if error.errno in _LEADS_NOWHERE:
            return False
        raise


def names(folder: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names of folders and of files in a folder, without our temporary ones."""
    inside, there = set(), set()
    for entry in _scan(folder):
        if files.TEMPORARY.fullmatch(entry.name):
            continue
        if is_folder(entry):
            inside.add(entry.name)
        elif is_file(entry):
            there.add(entry.name)
    return frozenset(inside), frozenset(there)


def walk(base: str) -> Iterator[tuple[str, bool]]:
    """Yields files below a folder, each with whether it may have a successor.

    Folders that are links are not entered.
    """
    found, chained = entries(base)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            yield from walk(entry.path)
        elif is_file(entry):
            yield entry.path, chained


def sync(
    base: str,
    run: Callable[[Callable[[str], None], list[str]], None],
    mode: int | None = None,
) -> None:
    """Makes everything below `base` durable: files, then folders bottom-up, then `base`'s entry.

    Each file by its own fsync, four at once. Measured on ext4: for 500 files of 4 KiB ten
    times as fast as one after the other, and one syncfs would be ten times as fast again;
    for six files of 64 MiB 1.5 times as fast as either. Saves write few and large files,
    and syncfs would also wait for whatever anyone else has written to the disk.

    Files that vanish meanwhile (the temporary ones of a heartbeat) need not be kept; one
    that was listed for the commit is missed by its check.

    Args:
        base: The folder; if it is absent, there is nothing to do.
        run: Applies a function to many paths, perhaps at once.
        mode: Mode bits to give to each folder first.

    Raises:
        OSError: Something could not be listed or synced.
    """
    folders: list[str] = []
    found: list[str] = []
    _collect(base, folders, found)
    run(_sync_if_there, found)
    for folder in folders:
        with contextlib.suppress(*_ABSENT):
            if mode is not None:
                os.chmod(folder, mode)
            fsync_folder(folder)
    if folders:
        fsync_folder(os.path.dirname(base))


def _collect(folder: str, folders: list[str], found: list[str]) -> None:
    """Lists folders bottom-up, and regular files that are not about to vanish."""
    if not os.path.isdir(folder):
        return
    for entry in _scan(folder):
        if entry.is_dir(follow_symlinks=False):
            _collect(entry.path, folders, found)
        elif entry.is_file() and not entry.name.startswith(".put-"):
            found.append(entry.path)
    folders.append(folder)


def _sync_if_there(path: str) -> None:
    with contextlib.suppress(*_ABSENT):
        fsync_path(path)


def remove(base: str) -> None:
    """Removes a folder: the marks of an attempt last, so that a half-removed one is found.

    Links are removed and never followed, `base` included.

    Raises:
        OSError: Something could not be listed or removed; the marks are still there.
    """
    if os.path.islink(base):
        os.unlink(base)
        return
    marks: list[str] = []
    _remove_below(base, marks)
    for mark in sorted(marks, key=lambda path: _MARKS.index(os.path.basename(path))):
        _unlink(mark)
    for folder in sorted({os.path.dirname(mark) for mark in marks}, key=len, reverse=True):
        while folder != base:
            _remove_folder(folder)
            folder = os.path.dirname(folder)
    _remove_folder(base)


def _remove_below(folder: str, marks: list[str]) -> None:
    for entry in _scan(folder):
        if entry.is_dir(follow_symlinks=False):
            _remove_below(entry.path, marks)
            _remove_folder(entry.path)
        elif entry.name in _MARKS:
            marks.append(entry.path)
        elif not entry.name.startswith(".nfs"):  # removed and still open; goes by itself
            _unlink(entry.path)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_folder(folder: str) -> None:
    """Removes a folder unless it holds something: a mark, or what a late writer adds."""
    try:
        os.rmdir(folder)
    except _ABSENT:
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def remove_old_temporaries(folder: str, older_than: float) -> int:
    """Removes what killed puts left in a folder and those right below it; says how many.

    Args:
        folder: Where to look.
        older_than: Age in seconds below which a put may still be under way.
    """
    removed = 0
    inside = _scan(folder)
    for entry in list(inside):
        if entry.is_dir(follow_symlinks=False) and not files.TEMPORARY.fullmatch(entry.name):
            inside += _scan(entry.path)
    for entry in inside:
        if not entry.name.startswith(".put-") or not files.TEMPORARY.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            # The change time: the modification time of an unfinished put may lie ahead.
            if time.time() - entry.stat(follow_symlinks=False).st_ctime < older_than:
                continue
            if entry.is_dir(follow_symlinks=False):
                remove(entry.path)
            else:
                os.unlink(entry.path)
            removed += 1
    return removed


def _scan(folder: str) -> list[os.DirEntry[str]]:
    """What is in a folder; nothing if it is absent.

    Raises:
        OSError: It is there and cannot be listed.
    """
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except _ABSENT:
        return []
