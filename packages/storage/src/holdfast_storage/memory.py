"""Storage inside this process: the semantics of an object store, for tests and notebooks.

Objects are files of a private temporary directory (in RAM where the system offers it),
so that TensorStore reaches them by path; the directory goes when the process ends. A
forked child starts with an empty store of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.scratch import ScratchFolder, remove_abandoned
from holdfast_storage.values import (
    ByteRange,
    Capabilities,
    IfAbsent,
    IfVersion,
    IoHints,
    KvTarget,
    Listing,
    Names,
    ObjectInfo,
    ObjectVersion,
    Precondition,
)

if TYPE_CHECKING:
    from holdfast_storage.commit.strategy import CommitStrategy

_PREFIX = "holdfast-memory-"
_IN_RAM = "/dev/shm"
_ENOUGH_BYTES = 1 << 30  # containers often have 64 MiB there, which no checkpoint fits
_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)


class _Stores:
    """The process's named stores. One lock makes every conditional put atomic."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._clock = 0
        self._folder: ScratchFolder | None = None

    def _private(self) -> Path:
        with self.lock:
            if self._folder is None or not os.path.isdir(self._folder.path):
                self._folder = ScratchFolder(_PREFIX, _base())
            return Path(self._folder.path)

    def objects(self) -> Path:
        """The folder of all objects."""
        return self._private() / "objects"

    def temporary(self) -> Path:
        """Where a put writes, under the lock, before it moves the file into place."""
        return self._private() / "put"

    def tick(self) -> int:
        """A strictly increasing time in nanoseconds: no two contents share a version."""
        self._clock = max(self._clock + 1, time.time_ns())
        return self._clock

    def let_go(self) -> None:
        """Closes what a fork copied; the parent goes on holding its directory."""
        if self._folder is not None:
            self._folder.let_go()


def _base() -> str:
    """Where directories are made, free of what killed processes left there."""
    slow = tempfile.gettempdir()
    if not (os.path.isdir(_IN_RAM) and os.access(_IN_RAM, os.W_OK)):
        remove_abandoned(_PREFIX, slow)
        return slow
    remove_abandoned(_PREFIX, _IN_RAM)
    if shutil.disk_usage(_IN_RAM).free >= _ENOUGH_BYTES:
        return _IN_RAM
    remove_abandoned(_PREFIX, slow)
    return slow


_stores = _Stores()


def _start_anew_after_fork() -> None:
    """The lock that makes puts atomic reaches no other process, so the bytes must not."""
    global _stores
    _stores.let_go()
    _stores = _Stores()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew_after_fork)


class MemoryBackend(StorageBackend):
    """A store in this process. Backends opened at the same URL see the same objects."""

    scheme: ClassVar[str] = "memory"

    def __init__(self, url: str) -> None:
        self.root = url.rstrip("/")
        self._prefix = self.root.partition("://")[2]
        self.capabilities = Capabilities(
            create_if_absent=True, compare_and_swap=True, rename_prefix=False
        )
        self.hints = IoHints(target_file_bytes=2 << 30, max_concurrency=32, coalesce_bytes=4096)

    def _path(self, key: str) -> Path:
        return _stores.objects() / self._prefix / key

    @contextlib.contextmanager
    def _translated(self, key: str) -> Iterator[None]:
        """Turns an `OSError` of the block into ours, with the original as its cause."""
        try:
            yield
        except errors.StorageError:
            raise
        except _ABSENT as error:
            raise self._absent(key) from error
        except OSError as error:
            where = {"key": key, "root": self.root}
            match error.errno:
                case errno.ENAMETOOLONG:
                    raise errors.InvalidKeyError("the key is too long", **where) from error
                case errno.ENOSPC | errno.EDQUOT:
                    raise errors.StorageFullError("the memory is full", **where) from error
            raise errors.StorageError(f"{error.strerror or error}", **where) from error

    def _info(self, key: str, path: Path) -> ObjectInfo:
        with self._translated(key):
            found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise self._absent(key)
        return _described(key, found)

    def _absent(self, key: str) -> errors.ObjectNotFoundError:
        return errors.ObjectNotFoundError("no such object", key=key, root=self.root)

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`."""
        keys.check_key(key, root=self.root)
        await asyncio.sleep(0)
        with self._translated(key), self._path(key).open("rb") as file:
            if byte_range is None:
                return file.read()
            file.seek(byte_range.start)
            return file.read(byte_range.stop - byte_range.start)

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`: one open file is one version."""
        keys.check_key(key, root=self.root)
        await asyncio.sleep(0)
        with self._translated(key), self._path(key).open("rb") as file:
            return _described(key, os.fstat(file.fileno())), file.read()

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Precondition | None = None,
        durable: bool = True,
        parents: bool = True,
    ) -> ObjectVersion:
        """See `StorageBackend.put`."""
        keys.check_key(key, root=self.root)
        await asyncio.sleep(0)
        path = self._path(key)
        with _stores.lock, self._translated(key):
            _remove_empty_folders(path)
            self._check(key, path, condition)
            self._make_room(key, path)
            temporary = _stores.temporary()
            try:
                temporary.write_bytes(data)
                now = _stores.tick()
                os.utime(temporary, ns=(now, now))
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            return self._info(key, path).version

    def _make_room(self, key: str, path: Path) -> None:
        """Makes the folders of a key.

        Raises:
            StorageError: Objects lie above or below it, which files cannot.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            taken = path.is_dir()
        except (FileExistsError, NotADirectoryError):
            taken = True
        if taken:
            raise errors.StorageError(
                "in this store a key is either an object or has objects below it, not both",
                key=key,
                root=self.root,
            )

    def _check(self, key: str, path: Path, condition: Precondition | None) -> None:
        match condition:
            case IfAbsent() if path.exists():
                raise errors.ObjectExistsError("the object exists", key=key, root=self.root)
            case IfVersion(version):
                found = self._info(key, path).version.token if path.is_file() else "nothing"
                if found != version.token:
                    raise errors.PreconditionFailedError(
                        f"expected version {version.token}, found {found}",
                        key=key,
                        root=self.root,
                    )

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        keys.check_key(key, root=self.root)
        await asyncio.sleep(0)
        return self._info(key, self._path(key))

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        keys.check_key(key, root=self.root)
        await asyncio.sleep(0)
        with (
            _stores.lock,
            contextlib.suppress(errors.ObjectNotFoundError),
            self._translated(key),
        ):
            self._path(key).unlink()

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`."""
        keys.check_prefix(prefix, root=self.root)
        await asyncio.sleep(0)
        base = self._path(prefix) if prefix else self._path("")
        for directory, _, names in sorted(os.walk(base)):
            for name in sorted(names):
                path = Path(directory) / name
                key = keys.join(prefix, path.relative_to(base).as_posix())
                try:
                    info = self._info(key, path)
                except errors.ObjectNotFoundError:
                    continue
                yield info

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`."""
        keys.check_prefix(prefix, root=self.root)
        await asyncio.sleep(0)
        prefixes, objects = [], []
        for entry in _scan(self._path(prefix)):
            key = keys.join(prefix, entry.name)
            if entry.is_dir():
                prefixes += [key] if _holds_anything(entry.path) else []
                continue
            with contextlib.suppress(errors.ObjectNotFoundError):
                objects.append(self._info(key, Path(entry.path)))
        return Listing(tuple(sorted(prefixes)), tuple(sorted(objects, key=lambda o: o.key)))

    async def names_in(self, prefixes: Sequence[str]) -> Mapping[str, Names]:
        """See `StorageBackend.names_in`."""
        await asyncio.sleep(0)
        found = {}
        for prefix in prefixes:
            keys.check_prefix(prefix, root=self.root)
            inside = [(entry, entry.is_dir()) for entry in _scan(self._path(prefix))]
            folders = [e.name for e, folder in inside if folder and _holds_anything(e.path)]
            found[prefix] = Names(
                frozenset(folders), frozenset(e.name for e, folder in inside if not folder)
            )
        return found

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`."""
        keys.check_prefix(prefix, root=self.root)
        spec = {"driver": "file", "path": f"{self._path(prefix)}/"}
        context = {"file_io_sync": False, "file_io_locking": {"mode": "none"}}
        return KvTarget(spec, context, self.hints)

    async def commit_strategy(self) -> CommitStrategy:
        """A conditional put of the record decides."""
        from holdfast_storage.commit.pointer import PointerCommit

        return PointerCommit(self)


def _described(key: str, found: os.stat_result) -> ObjectInfo:
    version = ObjectVersion(f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
    return ObjectInfo(key, found.st_size, version, found.st_mtime)


def _scan(folder: Path | str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as listing:
            return list(listing)
    except _ABSENT:
        return []


def _holds_anything(folder: str) -> bool:
    """Whether any file lies below it: an object store has no empty folders."""
    inside = _scan(folder)
    return any(not entry.is_dir() for entry in inside) or any(
        _holds_anything(entry.path) for entry in inside if entry.is_dir()
    )


def _remove_empty_folders(path: Path) -> None:
    """Folders without an object are nothing in an object store, so they stand in no way."""
    if path.is_dir():
        for folder, _, _ in os.walk(path, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def open_backend(url: str, options: Mapping[str, Any]) -> MemoryBackend:
    """The factory that the registry calls.

    Raises:
        InvalidURLError: Settings were given; this store has none.
    """
    if options:
        raise errors.InvalidURLError(f"{url} takes no settings, got {sorted(options)}")
    return MemoryBackend(url)
