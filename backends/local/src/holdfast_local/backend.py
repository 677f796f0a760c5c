"""Local disks: files are objects, folders are prefixes, and a rename commits."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import functools
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, ParamSpec, TypeVar

from holdfast_local import chain, files, folders, network, syscalls
from holdfast_local.pools import pools_for
from holdfast_local.translation import translate, translated
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
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

P = ParamSpec("P")
T = TypeVar("T")
_LISTED_IN_ONE_GO = 64


class LocalBackend(StorageBackend):
    """A folder of a local disk or a mounted network file system.

    What a file system cannot do (exchange two folders, link files) is learned from its
    first refusal, without a trial that would write into the folder: the operation raises
    `UnsupportedOperationError` and `capabilities` says so from then on.

    Args:
        root: An absolute path. It need not exist: the first put creates it.

    Raises:
        InvalidURLError: `root` is relative.
    """

    scheme: ClassVar[str] = "file"

    def __init__(self, root: str) -> None:
        if not os.path.isabs(root) or "\0" in root:
            raise errors.InvalidURLError(f"a local root is an absolute path, got {root!r}")
        self.root = root.rstrip("/") or "/"
        self.capabilities = Capabilities(
            create_if_absent=True,
            compare_and_swap=True,
            rename_prefix=True,
            exchange_prefix=syscalls.known(),  # until the file system says otherwise
        )
        self.hints = IoHints(
            # Several files are written and synced at once: measured 1.2-1.3 times as fast
            # as one large one, with nothing more to gain below this size.
            target_file_bytes=256 << 20,
            max_concurrency=max(4, 2 * (os.cpu_count() or 1)),
            coalesce_bytes=4096,
        )
        self._directory_mode: int | None = None
        pools_for(self.root)  # no thread can be started while the interpreter ends

    @functools.cached_property
    def _on_network(self) -> bool:
        return network.is_network(self.root)

    async def _run(
        self, key: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs blocking work in the pool; its `OSError` comes out as ours."""

        def work() -> T:
            with translated(key, self.root):
                return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(pools_for(self.root).work, work)

    def _path(self, key: str) -> str:
        return os.path.join(self.root, key) if key else self.root

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`."""
        keys.check_key(key, root=self.root)
        return await self._run(key, self._read, key, byte_range)

    def _read(self, key: str, byte_range: ByteRange | None) -> bytes:
        file, _ = self._ask(key, chain.open_current)
        with file:
            if byte_range is None:
                return file.read()
            file.seek(byte_range.start)
            return file.read(byte_range.stop - byte_range.start)

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`: one open file is one version."""
        keys.check_key(key, root=self.root)
        return await self._run(key, self._read_whole, key)

    def _read_whole(self, key: str) -> tuple[ObjectInfo, bytes]:
        file, status = self._ask(key, chain.open_current)
        with file:
            return _info(key, status), file.read()

    def _ask(self, key: str, question: Callable[[str], T]) -> T:
        """Asks about a file; absence is believed once a fresh listing agrees (rule R10)."""
        path = self._path(key)
        try:
            return question(path)
        except (FileNotFoundError, NotADirectoryError):
            if not (self._on_network and network.still_listed(path)):
                raise
        try:
            return question(path)
        except FileNotFoundError as error:
            raise errors.TransientStorageError(
                "a cache denies a file that its folder lists", key=key, root=self.root
            ) from error

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
        if any(files.TEMPORARY.fullmatch(part) for part in key.split("/")):
            raise errors.InvalidKeyError(
                "names such as '.put-<32 hex digits>' are those of unfinished puts, which no "
                "listing shows",
                key=key,
                root=self.root,
            )
        work = asyncio.ensure_future(
            self._run(key, self._write, key, data, condition, durable=durable, parents=parents)
        )
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            # All or nothing: a thread cannot be stopped half-way.
            await asyncio.gather(work, return_exceptions=True)
            raise

    def _write(
        self,
        key: str,
        data: bytes,
        condition: Precondition | None,
        *,
        durable: bool,
        parents: bool,
    ) -> ObjectVersion:
        path = self._path(key)
        with translated(key, self.root, wanted=len(data)):
            try:
                token = self._store(path, data, condition, durable=durable, parents=parents)
            except NotADirectoryError as error:
                raise errors.ObjectExistsError(
                    "a file is where a folder is needed", key=key, root=self.root
                ) from error
        if token is None:
            raise errors.PreconditionFailedError(
                f"the object is not the version of {condition}", key=key, root=self.root
            )
        return ObjectVersion(token)

    def _store(
        self,
        path: str,
        data: bytes,
        condition: Precondition | None,
        *,
        durable: bool,
        parents: bool,
    ) -> str | None:
        """The version that was stored; None if another is there than the condition says."""
        match condition:
            case IfAbsent():
                return files.create(path, data, durable=durable, parents=parents)
            case IfVersion(version):
                try:
                    return files.swap(path, data, version.token)
                except errors.UnsupportedOperationError:
                    self._cannot(compare_and_swap=False)
                    raise
            case None:
                return files.write(path, data, durable=durable, parents=parents)

    def _cannot(self, **refused: bool) -> None:
        self.capabilities = dataclasses.replace(self.capabilities, **refused)

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        keys.check_key(key, root=self.root)
        return await self._run(key, self._stat, key)

    def _stat(self, key: str) -> ObjectInfo:
        return _info(key, self._ask(key, chain.current))

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        keys.check_key(key, root=self.root)
        await self._run(key, self._unlink, self._path(key))

    def _unlink(self, path: str) -> None:
        try:
            os.unlink(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`."""
        keys.check_prefix(prefix, root=self.root)
        for info in await self._run(prefix, self._walk, prefix):
            yield info

    def _walk(self, prefix: str) -> list[ObjectInfo]:
        base = self._path(prefix)
        found = []
        for path, chained in folders.walk(base):
            info = self._listed(keys.join(prefix, os.path.relpath(path, base)), chained=chained)
            found += [info] if info else []
        return found

    def _listed(self, key: str, *, chained: bool) -> ObjectInfo | None:
        """What a listing says of a file; None if it has gone meanwhile, or is none."""
        try:
            return _info(key, chain.current(self._path(key), chained=chained))
        except (FileNotFoundError, NotADirectoryError):
            return None

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`."""
        keys.check_prefix(prefix, root=self.root)
        return await self._run(prefix, self._children, prefix)

    def _children(self, prefix: str) -> Listing:
        prefixes, objects = [], []
        found, chained = folders.entries(self._path(prefix))
        for entry in found:
            key = keys.join(prefix, entry.name)
            if folders.is_folder(entry):
                prefixes.append(key)
            elif folders.is_file(entry):
                info = self._listed(key, chained=chained)
                objects += [info] if info else []
        return Listing(tuple(prefixes), tuple(objects))

    async def names_in(self, prefixes: Sequence[str]) -> Mapping[str, Names]:
        """See `StorageBackend.names_in`: microseconds each, in one thread.

        In several on a network file system, where each waits for a reply.
        """
        for prefix in prefixes:
            keys.check_prefix(prefix, root=self.root)
        size = _LISTED_IN_ONE_GO if self._on_network else max(1, len(prefixes))
        parts = [prefixes[start : start + size] for start in range(0, len(prefixes), size)]
        found = await asyncio.gather(*(self._run("", self._names_in, part) for part in parts))
        return {prefix: names for part in found for prefix, names in part.items()}

    def _names_in(self, prefixes: Sequence[str]) -> dict[str, Names]:
        found = {}
        for prefix in prefixes:
            with contextlib.suppress(PermissionError):
                found[prefix] = Names(*folders.names(self._path(prefix)))
        return found

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`.

        TensorStore neither syncs nor locks: `sync_prefix` makes its files durable at the
        seal, and nobody else writes below an attempt.
        """
        keys.check_prefix(prefix, root=self.root)
        spec = {"driver": "file", "path": f"{self._path(prefix)}/"}
        context = {
            "file_io_sync": False,
            "file_io_locking": {"mode": "none"},
            "file_io_concurrency": {"limit": self.hints.max_concurrency},
        }
        return KvTarget(spec, context, self.hints)

    def local_path(self, prefix: str) -> str | None:
        """See `StorageBackend.local_path`."""
        keys.check_prefix(prefix, root=self.root)
        return self._path(prefix)

    async def rename_prefix(self, source: str, destination: str) -> None:
        """See `StorageBackend.rename_prefix`."""
        for key in (source, destination):
            keys.check_key(key, root=self.root)
        await self._run(destination, self._move, source, destination)

    def _move(self, source: str, destination: str) -> None:
        try:
            folders.move(self._path(source), self._path(destination))
        except FileNotFoundError as error:
            raise translate(error, key=source, root=self.root) from error

    async def exchange_prefix(self, first: str, second: str) -> None:
        """See `StorageBackend.exchange_prefix`."""
        for key in (first, second):
            keys.check_key(key, root=self.root)
        paths = self._path(first), self._path(second)
        if not await self._run(first, folders.exchange, *paths):
            self._cannot(exchange_prefix=False)
            await super().exchange_prefix(first, second)

    async def link(self, source: str, destination: str) -> bool:
        """See `StorageBackend.link`: a hard link, where the file system has them."""
        for key in (source, destination):
            keys.check_key(key, root=self.root)
        return await self._run(destination, files.link, self._path(source), self._path(destination))

    async def sync_prefix(self, prefix: str) -> None:
        """See `StorageBackend.sync_prefix`."""
        keys.check_prefix(prefix, root=self.root)

        def at_once(function: Callable[[str], None], paths: list[str]) -> None:
            list(pools_for(self.root).sync.map(function, paths))

        await self._run(prefix, folders.sync, self._path(prefix), at_once, self._directory_mode)

    def with_directory_mode(self, mode: int) -> LocalBackend:
        """See `StorageBackend.with_directory_mode`; the two share their threads."""
        fitted = copy.copy(self)
        fitted._directory_mode = mode
        return fitted

    async def delete_prefix(self, prefix: str) -> None:
        """See `StorageBackend.delete_prefix`."""
        keys.check_key(prefix, root=self.root)
        await self._run(prefix, folders.remove, self._path(prefix))

    async def abort_uploads(self, prefix: str, *, older_than: float) -> int:
        """Removes what killed puts left, directly below `prefix` and one level deeper."""
        path = self._path(prefix)
        return await self._run(prefix, folders.remove_old_temporaries, path, older_than)

    async def commit_strategy(self) -> CommitStrategy:
        """Commits by a rename."""
        from holdfast_storage.commit import RenameCommit

        return RenameCommit(self)

    async def aclose(self) -> None:
        """Nothing to end: the threads are shared."""


def _info(key: str, status: os.stat_result) -> ObjectInfo:
    # The change time is the file system's own, and content never changes in place; the
    # modification time is set by the writing host, whose clock may be another.
    version = ObjectVersion(chain.version_of(status))
    return ObjectInfo(key, status.st_size, version, status.st_ctime)


def open_backend(url: str, options: Mapping[str, Any]) -> LocalBackend:
    """The factory that the registry calls.

    Raises:
        InvalidURLError: Settings were given; this store has none.
    """
    if options:
        raise errors.InvalidURLError(f"{url} takes no settings, got {sorted(options)}")
    return LocalBackend(url.removeprefix(f"{LocalBackend.scheme}://") or "/")
