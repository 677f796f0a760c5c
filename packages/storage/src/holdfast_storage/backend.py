"""The one interface between holdfast and a store.

A backend signs eight guarantees; `holdfast_storage.testing.StorageBackendTests` has a
group of tests for each:

* **G1** A put is all-or-nothing, and durable on return unless `durable=False`.
* **G2** A conditional put that loses raises and changes nothing. A condition that the
  store cannot honour raises `UnsupportedOperationError`; it never degrades.
* **G3** Reads and listings see every earlier write of this host. No listing caches.
* **G4** Prefixes match whole segments: `a/b` covers `a/b/x`, not `a/bc`.
* **G5** Deleting what is not there succeeds.
* **G6** `rename_prefix`, where offered, is atomic for readers, durable on return, and
  raises `ObjectExistsError` if the destination holds anything.
* **G7** Bytes written through `kv_target(p)` appear in `walk(p)` and `get`.
* **G8** Errors are ours, with the store's own as `__cause__`; every request has a finite
  deadline; cancellation leaves no partial object.
"""

from __future__ import annotations

import abc
import asyncio
import copy
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from holdfast_metadata import ATTEMPT_FILE
from holdfast_storage import errors, keys
from holdfast_storage.values import (
    ByteRange,
    Capabilities,
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

_TORN_READS = 20
_LISTED_AT_ONCE = 64


class StorageBackend(abc.ABC):
    """A store under one root.

    Subclasses implement the abstract methods; the others have honest defaults. All
    methods are called on holdfast's storage loop. Keys are relative to `root`.

    Attributes:
        scheme: The URL scheme, for messages.
        root: The root as a URL or path, for messages; holds no secret.
        capabilities: What the store can do.
        hints: Advice for writers.
        environment: Beginnings of the names of environment variables that the settings come
            from. Once one of them has changed, the place is opened anew.
        orbax_commits_by_file: Whether Orbax, on such a store, writes in place and says by the
            file `commit_success.txt` that it is done; elsewhere it renames a folder.
    """

    scheme: ClassVar[str]
    environment: ClassVar[tuple[str, ...]] = ()
    orbax_commits_by_file: bool = False
    root: str
    capabilities: Capabilities
    hints: IoHints

    @abc.abstractmethod
    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """Returns the object's bytes, or those of `byte_range` (cut at the end).

        Raises:
            ObjectNotFoundError: The store proved that it is absent.
        """

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """Returns an object's bytes together with the version that they are.

        A store that answers both in one request overrides this.

        Raises:
            ObjectNotFoundError: Proven absent.
            TransientStorageError: It changed again and again meanwhile.
        """
        for _ in range(_TORN_READS):
            before = await self.stat(key)
            data = await self.get(key)
            after = await self.stat(key)
            if before.version == after.version:
                return after, data
        raise errors.TransientStorageError(
            f"the object changed {_TORN_READS} times while it was read", key=key, root=self.root
        )

    @abc.abstractmethod
    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Precondition | None = None,
        durable: bool = True,
        parents: bool = True,
    ) -> ObjectVersion:
        """Stores `data` at `key`, all of it or nothing.

        Args:
            key: Where.
            data: What.
            condition: Write only under this condition.
            durable: If false, the bytes may need `sync_prefix` to survive a power cut.
            parents: If false, a store with folders creates none, so that a late write
                cannot bring back a folder that was moved or removed. Others ignore it.

        Returns:
            The version now stored.

        Raises:
            ObjectExistsError: `IfAbsent` and something is there.
            ObjectNotFoundError: The folder is missing and `parents` is false.
            PreconditionFailedError: `IfVersion` and another version, or nothing, is there.
            UnsupportedOperationError: The store cannot honour the condition.
        """

    @abc.abstractmethod
    async def stat(self, key: str) -> ObjectInfo:
        """Returns size and version.

        Raises:
            ObjectNotFoundError: Proven absent.
        """

    @abc.abstractmethod
    async def delete(self, key: str) -> None:
        """Removes one object; succeeds if it is absent."""

    @abc.abstractmethod
    def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Yields every object below `prefix`, at any depth, in no promised order."""

    async def children(self, prefix: str) -> Listing:
        """Returns one level below `prefix`; empty if there is nothing.

        A store that lists one level without walking those below it overrides this.
        """
        prefixes: set[str] = set()
        objects = []
        async for info in self.walk(prefix):
            head, slash, _ = keys.relative(info.key, prefix).partition("/")
            if slash:
                prefixes.add(keys.join(prefix, head))
            else:
                objects.append(info)
        return Listing(tuple(sorted(prefixes)), tuple(sorted(objects, key=lambda o: o.key)))

    async def names_in(self, prefixes: Sequence[str]) -> Mapping[str, Names]:
        """Says what lies one level below each of some prefixes; empty where nothing does.

        A prefix that may not be listed is missing from the answer. A store that lists many
        prefixes for less than one `children` each overrides this.
        """
        limit = asyncio.Semaphore(_LISTED_AT_ONCE)

        async def look(prefix: str) -> Names | None:
            async with limit:
                try:
                    listing = await self.children(prefix)
                except errors.StoragePermissionError:
                    return None
            objects = frozenset(keys.leaf(info.key) for info in listing.objects)
            return Names(frozenset(map(keys.leaf, listing.prefixes)), objects)

        found = await asyncio.gather(*map(look, prefixes))
        return {p: names for p, names in zip(prefixes, found, strict=True) if names is not None}

    @abc.abstractmethod
    def kv_target(self, prefix: str) -> KvTarget:
        """Says how TensorStore reaches `prefix`. Pure: no I/O."""

    def local_path(self, prefix: str) -> str | None:
        """The folder of this host's file system that `prefix` is, or None. Pure: no I/O.

        Where there is one, programs may write files below it with `open`; like those of
        TensorStore they appear in `walk` and `get` (G7), and `sync_prefix` makes them durable.
        A store that keeps its objects in any other way has none.
        """
        return None

    @abc.abstractmethod
    async def commit_strategy(self) -> CommitStrategy:
        """Returns the commit protocol that suits this store, after any probe it needs."""

    async def rename_prefix(self, source: str, destination: str) -> None:
        """Moves everything below `source`, atomically for readers.

        Raises:
            ObjectNotFoundError: `source` is absent.
            ObjectExistsError: `destination` holds anything; nothing was moved.
            UnsupportedOperationError: Without the capability.
        """
        raise errors.UnsupportedOperationError(
            f"this store cannot rename to {destination!r} atomically", key=source, root=self.root
        )

    async def exchange_prefix(self, first: str, second: str) -> None:
        """Swaps two existing prefixes, atomically for readers, durable on return.

        Raises:
            ObjectNotFoundError: Either is absent; nothing was moved.
            UnsupportedOperationError: Without the capability.
        """
        raise errors.UnsupportedOperationError(
            f"this store cannot exchange with {second!r} atomically", key=first, root=self.root
        )

    async def link(self, source: str, destination: str) -> bool:
        """Gives the bytes of an object a second key, without copying them.

        The two are independent from then on. The destination may need `sync_prefix` to
        survive a power cut.

        Returns:
            False, with nothing done, where the store cannot.

        Raises:
            ObjectNotFoundError: `source` is absent.
            ObjectExistsError: `destination` is not.
        """
        return False

    async def sync_prefix(self, prefix: str) -> None:  # noqa: B027 - an honest default
        """Makes everything below `prefix` durable. Nothing to do where `put` already is."""

    async def delete_prefix(self, prefix: str) -> None:
        """Removes everything below `prefix`; safe to repeat, succeeds if it is absent.

        The mark of an attempt goes last, so that a removal which was cut short is found
        and finished by the next sweep.
        """
        marks = []
        async for info in self.walk(prefix):
            if keys.leaf(info.key) == ATTEMPT_FILE:
                marks.append(info.key)
            else:
                await self.delete(info.key)
        for key in marks:
            await self.delete(key)

    def with_directory_mode(self, mode: int) -> StorageBackend:
        """The same place, where each directory of an attempt gets a mode when it is sealed.

        Args:
            mode: The mode bits; the owner's are all set.

        Raises:
            UnsupportedOperationError: The store has no directories.
        """
        raise errors.UnsupportedOperationError(
            f"path_permission_mode={mode:#o} is for storage with directories, and this has none; "
            "who may read here is set in the store itself",
            root=self.root,
        )

    def with_unmarked_orbax(self) -> Self:
        """The same place, where Orbax's checkpoints count that lack `commit_success.txt`.

        Old versions that renamed wrote none; one of theirs may have been copied here.
        """
        fitted = copy.copy(self)
        fitted.orbax_commits_by_file = False
        return fitted

    async def abort_uploads(self, prefix: str, *, older_than: float) -> int:
        """Aborts unfinished uploads into attempts below a prefix; says how many.

        Others' uploads are left alone, and so are those younger than `older_than` seconds.
        """
        return 0

    async def settle(self, parent: str, listing: Listing) -> bool:
        """Publishes what a killed writer decided one level below `parent` and did not publish.

        For stores where these are two steps. A process that may not write leaves it undone.

        Args:
            parent: A prefix.
            listing: What `children` says of it.

        Returns:
            Whether anything may have been published, so that the listing is an old one.
        """
        return False

    async def release(self) -> None:  # noqa: B027 - an honest default
        """Releases the running event loop's connections; other loops keep theirs.

        For threads that use a loop of their own for a while. A later call opens new ones.
        """

    async def aclose(self) -> None:  # noqa: B027 - an honest default
        """Releases connections. Calling it again does nothing."""
