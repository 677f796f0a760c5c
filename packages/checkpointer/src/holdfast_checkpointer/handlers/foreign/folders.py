"""The folder in which a user's handler writes or reads: a real one, on every store.

Where the store has folders, it is the attempt's own. Elsewhere, and for a save by several
processes, it is a spool: a folder of this process's that is uploaded after the save, or filled
before the restore, and then removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.errors import SpoolFullError, UnsavableFileError
from holdfast_checkpointer.handlers.foreign.calls import Worker
from holdfast_checkpointer.options import FileOptions
from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE, MANIFEST_FILE
from holdfast_storage import ReadArea, WriteArea
from holdfast_storage.commit import EMPTY_FOLDER
from holdfast_storage.scratch import ScratchFolder, remove_abandoned
from holdfast_storage.streaming import ByteBudget

_log = logging.getLogger(__name__)
_PREFIX = "holdfast-spool-"
_AT_ONCE = 16
_BYTES_AT_ONCE = 512 << 20
_PROTOCOL = {ATTEMPT_FILE, COMMIT_FILE, MANIFEST_FILE}
# What a direct save of ours leaves until `finalize`; see `handlers.direct`.
UNFINALIZED = ".holdfast-not-finalized"


@dataclass(frozen=True)
class Contents:
    """What lies in a folder.

    Attributes:
        files: Sizes by relative path.
        empty: Folders that hold nothing, by relative path; "" is the folder itself.
    """

    files: dict[str, int]
    empty: list[str]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(self.files.values())


class ItemFolder:
    """A folder for one item to be saved.

    Attributes:
        path: Of this host.
    """

    def __init__(
        self,
        area: WriteArea,
        path: str,
        spool: ScratchFolder | None,
        limit: int,
        *,
        private: bool = False,
    ) -> None:
        self.path = path
        self._private = private
        self._area = area
        self._spool = spool
        self._limit = limit
        os.makedirs(path, exist_ok=True)
        self._ours = set(os.listdir(path))

    @classmethod
    async def open(
        cls, area: WriteArea, options: FileOptions, worker: Worker, *, private: bool = False
    ) -> ItemFolder:
        """Makes the folder; a private one is a spool on every store."""

        def make() -> ItemFolder:
            path = None if private else area.local_path()
            if path is not None:
                return cls(area, path, None, options.spool_bytes)
            spool = _new_spool(options)
            try:
                folder = _inside(spool, area.label)
                return cls(area, folder, spool, options.spool_bytes, private=private)
            except BaseException:
                spool.remove()
                raise

        return await worker.make(make, ItemFolder._remove)

    async def check(self, worker: Worker, *, finalized: bool) -> Contents:
        """Looks at what the handler has left.

        Args:
            worker: Where to look.
            finalized: Whether its `finalize` has been called.

        Raises:
            UnsavableFileError: Something in the folder is no plain file.
            SpoolFullError: The spool holds more than it may.
        """
        found = await worker.run(lambda: survey(self.path, self._ours))
        unfinished = [name for name in found.files if _last(name) == UNFINALIZED]
        if unfinished and finalized:
            raise UnsavableFileError(
                f"in {self._area.label}, a handler's save was called and its finalize was not "
                f"({unfinished[0]!r} is there): call it in your handler's finalize"
            )
        if self._spool is not None and found.size > self._limit:
            raise _too_much(self._area.label, found.size, self._limit)
        return found

    async def hand_over(self, worker: Worker, beside: Collection[str] = ()) -> None:
        """Makes what is in the folder part of the attempt.

        Args:
            worker: Where to read.
            beside: Folders that have other contents there, by relative path.

        Raises:
            UnsavableFileError: A file cannot be part of it.
        """
        found = await self.check(worker, finalized=True)
        if self._spool is not None:
            if self._private:  # others may have files there
                beside = {"", *beside}
            found.empty[:] = [name for name in found.empty if name not in beside]
            await _upload(self._area, self.path, found, worker)
            _log.info(
                "%s: %d files, %d bytes were uploaded from the spool %s",
                *(self._area.label, len(found.files), found.size, self.path),
            )
        else:
            listed = await self._area.files()
            hidden = found.files.keys() - listed.keys()
            for name in hidden & (await self.check(worker, finalized=True)).files.keys():
                raise UnsavableFileError(
                    f"the store does not list the file {name!r} in {self._area.label}: its name is "
                    "one that holdfast uses for unfinished work; choose another"
                )
            if not found.files:
                await self._area.put(EMPTY_FOLDER, b"")

    async def discard(self, worker: Worker) -> None:
        """Removes the spool, if there is one."""
        await worker.run(self._remove)

    def _remove(self) -> None:
        if self._spool is not None:
            self._spool.remove()


@contextlib.asynccontextmanager
async def readable_folder(
    area: ReadArea, options: FileOptions, worker: Worker
) -> AsyncIterator[str]:
    """A folder with an item's files, each compared with what was saved.

    Raises:
        DamagedCheckpointError: One is gone or differs.
        SpoolFullError: They are more than the spool may hold; nothing was downloaded.
    """
    path = area.local_path()
    if path is not None:
        await area.check()
        yield path
        return
    files = await area.files()
    total = sum(files.values())
    if total > options.spool_bytes:
        raise _too_much(area.label, total, options.spool_bytes)
    spool = await worker.make(lambda: _new_spool(options), ScratchFolder.remove)
    try:
        folder = _inside(spool, area.label)
        await _download(area, folder, files, worker)
        _log.info(
            "%s: %d files, %d bytes were downloaded into the spool %s",
            *(area.label, len(files), total, folder),
        )
        yield folder
    finally:
        await worker.run(spool.remove)


def survey(folder: str, ours: set[str]) -> Contents:
    """What lies in a folder, `ours` at its top left out.

    Raises:
        UnsavableFileError: Something is neither a plain file nor a folder, or has a name of
            the protocol's; the message names it.
    """
    files: dict[str, int] = {}
    empty = []
    for path, folders, names in os.walk(folder, onerror=_raise):
        relative = os.path.relpath(path, folder)
        inside = "" if relative == "." else f"{relative}/"
        if not inside:
            names = [name for name in names if name not in ours]
        if not folders and not names:
            empty.append(inside.rstrip("/"))
        for name in [*names, *folders]:
            try:
                status = os.lstat(os.path.join(path, name))
            except FileNotFoundError:  # a temporary file of the store's own
                continue
            _check(f"{inside}{name}", status, folder)
            if stat.S_ISREG(status.st_mode):
                files[f"{inside}{name}"] = status.st_size
    return Contents(files, empty)


def _raise(error: OSError) -> None:
    raise error


def _check(name: str, status: os.stat_result, folder: str) -> None:
    mode = status.st_mode
    if _last(name) == EMPTY_FOLDER and not (stat.S_ISREG(mode) and status.st_size == 0):
        raise UnsavableFileError(
            f"{name!r} in {folder}: a file of this name stands for an empty folder; choose another"
        )
    if _last(name) in _PROTOCOL:
        raise UnsavableFileError(
            f"{name!r} in {folder}: the commit needs this name; choose another"
        )
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "no plain file"
        raise UnsavableFileError(
            f"{name!r} in {folder} is {kind}; a checkpoint holds files and folders, for what a "
            "link points at is not part of it: copy the file instead"
        )


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _too_much(label: str, size: int, limit: int) -> SpoolFullError:
    return SpoolFullError(
        f"the files of {label} are {size} bytes, and the spool may hold {limit}: raise "
        "FileOptions(spool_bytes=...), or save large data with a handler of holdfast's, which "
        "needs no spool"
    )


def _new_spool(options: FileOptions) -> ScratchFolder:
    base = options.spool_directory or tempfile.gettempdir()
    remove_abandoned(_PREFIX, base)
    return ScratchFolder(_PREFIX, base)


def _inside(spool: ScratchFolder, label: str) -> str:
    """A folder in the spool, called as the item is."""
    path = os.path.join(spool.path, label.rstrip("/").rpartition("/")[2])
    os.makedirs(path, exist_ok=True)
    return path


async def _upload(area: WriteArea, folder: str, found: Contents, worker: Worker) -> None:
    async def one(name: str) -> None:
        await area.put(name, await worker.run(lambda: _read(os.path.join(folder, name))))

    await _bounded(found.files, one)
    for name in found.empty:
        await (area.child(name) if name else area).put(EMPTY_FOLDER, b"")


async def _download(area: ReadArea, folder: str, files: Mapping[str, int], worker: Worker) -> None:
    async def one(name: str) -> None:
        data = await area.get(name)
        await worker.run(lambda: _write(os.path.join(folder, name), data))

    await _bounded(files, one)


async def _bounded(files: Mapping[str, int], one: Callable[[str], Awaitable[None]]) -> None:
    """Handles every file, some at once, with a bound on the bytes in memory."""
    budget = ByteBudget(_BYTES_AT_ONCE)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def bounded(name: str, size: int) -> None:
        async with limit, budget.taking(size):
            await one(name)

    await run_all(bounded(name, size) for name, size in files.items())


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _write(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.basename(path) == EMPTY_FOLDER:
        return
    with open(path, "xb") as file:
        file.write(data)


__all__ = ["EMPTY_FOLDER", "UNFINALIZED", "Contents", "ItemFolder", "readable_folder", "survey"]
