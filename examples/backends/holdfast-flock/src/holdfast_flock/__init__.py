"""Checkpoints in a folder where a lock decides, for file systems that have one and no links."""

import asyncio
import contextlib
import errno
import fcntl
import os
import time
from pathlib import Path

from holdfast_storage import (
    Capabilities,
    IfAbsent,
    IfVersion,
    InvalidKeyError,
    InvalidURLError,
    IoHints,
    KvTarget,
    ObjectExistsError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectVersion,
    PreconditionFailedError,
    StorageBackend,
    StorageError,
    StorageFullError,
    StoragePermissionError,
    keys,
)
from holdfast_storage.commit import PointerCommit

KINDS = {  # what an error number means for the caller; the others are a StorageError
    errno.ENOENT: ObjectNotFoundError,
    errno.ENOTDIR: ObjectNotFoundError,
    errno.EISDIR: ObjectNotFoundError,
    errno.ENAMETOOLONG: InvalidKeyError,
    errno.ENOSPC: StorageFullError,
    errno.EDQUOT: StorageFullError,
    errno.EACCES: StoragePermissionError,
    errno.EROFS: StoragePermissionError,
}


class FlockBackend(StorageBackend):
    """`flock://name/run` is the folder `<folder>/name/objects/run`."""

    scheme = "flock"

    def __init__(self, url, folder):
        self.root = url.rstrip("/")
        name, _, prefix = self.root.partition("://")[2].partition("/")
        self._store = Path(folder) / name
        self._base = self._store / "objects" / prefix
        # What the conformance kit then demands, and the commit strategies rely on.
        self.capabilities = Capabilities(
            create_if_absent=True, compare_and_swap=True, rename_prefix=False
        )
        self.hints = IoHints(target_file_bytes=1 << 30, max_concurrency=8, coalesce_bytes=1 << 16)

    # --- the folder ----------------------------------------------------------------------

    async def _on_disk(self, key, action):
        """Runs `action(path)` in a thread, for it may wait; its errors become holdfast's."""
        keys.check_key(key, root=self.root)
        try:
            return await asyncio.to_thread(action, self._base / key)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            kind = KINDS.get(error.errno, StorageError)
            raise kind(str(error.strerror), key=key, root=self.root) from error

    @contextlib.contextmanager
    def _locked(self):
        """One writer at a time, of all processes; a process that dies gives the lock back."""
        self._store.mkdir(parents=True, exist_ok=True)
        with (self._store / "lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _info(self, path):
        found = path.stat()
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, "this is a folder")
        version = ObjectVersion(f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}")
        key = path.relative_to(self._base).as_posix()
        return ObjectInfo(key, found.st_size, version, found.st_mtime)

    # --- objects -------------------------------------------------------------------------

    async def get(self, key, *, byte_range=None):
        def action(path):
            with path.open("rb") as file:
                if byte_range is None:
                    return file.read()
                file.seek(byte_range.start)
                return file.read(byte_range.stop - byte_range.start)

        return await self._on_disk(key, action)

    async def stat(self, key):
        return await self._on_disk(key, self._info)

    async def put(self, key, data, *, condition=None, durable=True, parents=True):
        def action(path):
            with self._locked():
                self._check(key, path, condition)
                path.parent.mkdir(parents=True, exist_ok=True)
                fresh = self._store / "fresh"  # what a killed writer left is written over
                with fresh.open("wb") as file:
                    file.write(data)
                    file.flush()
                    now = time.time_ns()  # finer than a file system's own clock
                    os.utime(fresh, ns=(now, now))
                    os.fsync(file.fileno())
                fresh.replace(path)
                for folder in path.relative_to(self._store).parents:
                    _sync_folder(self._store / folder)
                return self._info(path).version

        return await self._on_disk(key, action)

    def _check(self, key, path, condition):
        if isinstance(condition, IfAbsent) and path.exists():
            raise ObjectExistsError("the object exists", key=key, root=self.root)
        if isinstance(condition, IfVersion):
            found = self._info(path).version.token if path.is_file() else "nothing"
            if found != condition.version.token:
                raise PreconditionFailedError(
                    f"expected version {condition.version.token}, found {found}",
                    key=key,
                    root=self.root,
                )

    async def delete(self, key):
        def action(path):
            with self._locked():
                path.unlink(missing_ok=True)

        with contextlib.suppress(ObjectNotFoundError):
            await self._on_disk(key, action)

    # --- listings ------------------------------------------------------------------------

    async def walk(self, prefix):
        keys.check_prefix(prefix, root=self.root)
        for folder, _, names in await asyncio.to_thread(lambda: list(os.walk(self._base / prefix))):
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    yield self._info(Path(folder) / name)

    # --- arrays and commits --------------------------------------------------------------

    def kv_target(self, prefix):
        """Arrays are files too: TensorStore's `file` driver sees what `put` wrote."""
        spec = {"driver": "file", "path": f"{self._base / prefix}/"}
        context = {"file_io_sync": True, "file_io_locking": {"mode": "none"}}
        return KvTarget(spec, context, self.hints)

    async def commit_strategy(self):
        """One conditional put decides."""
        return PointerCommit(self)


def _sync_folder(folder):
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_backend(url, options):
    """The entry point. Settings come from code, HOLDFAST_STORAGE_OPTIONS or fsspec's files."""
    if set(options) != {"folder"}:
        raise InvalidURLError(f"{url} takes the setting 'folder', got {sorted(options)}")
    return FlockBackend(url, options["folder"])
