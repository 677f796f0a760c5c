"""Stopping an actor at one numbered call: by a crash, a lost reply, or a pause."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import (
    ByteRange,
    KvTarget,
    Listing,
    Names,
    ObjectInfo,
    ObjectVersion,
    Precondition,
)

if TYPE_CHECKING:
    from holdfast_storage.commit.strategy import CommitStrategy

T = TypeVar("T")
MUTATIONS = frozenset(("put", "delete", "rename", "exchange"))


class SimulatedCrash(BaseException):
    """The process died here. No `except Exception` may see it."""


class Fault(enum.Enum):
    """What happens at a numbered call."""

    CRASH = "crash before the effect"
    LOSE_REPLY = "the effect happens, the reply is lost"
    REFUSE = "nothing happens, the store answers 503"
    PAUSE = "wait before the effect until resumed"
    DELAY = "the effect happens a while later"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that was counted."""

    number: int
    operation: str
    key: str


class FaultyBackend(StorageBackend):
    """One actor's view of a store that others share.

    Mutating calls are numbered from 1. `delete_prefix` is taken apart, so that every
    single removal is a point of its own.

    Args:
        inner: The store.
        faults: What happens at which call.
        reads: Number the reads too.
        delay_s: How long `Fault.DELAY` waits, in seconds.
    """

    scheme: ClassVar[str] = "faulty"

    def __init__(
        self,
        inner: StorageBackend,
        faults: dict[int, Fault] | None = None,
        *,
        reads: bool = False,
        delay_s: float = 0.01,
    ) -> None:
        self._inner = inner
        self.delay_s = delay_s
        self.faults = dict(faults or {})
        self.root = inner.root
        self.capabilities = inner.capabilities
        self.hints = inner.hints
        self.calls: list[Call] = []
        self.crashed = False
        self.reached = asyncio.Event()
        self.resume = asyncio.Event()
        self._reads = reads

    async def _numbered(
        self, operation: str, key: str, act: Callable[[], Awaitable[T]], *, mutates: bool = True
    ) -> T:
        self._still_alive()
        if not mutates and not self._reads:
            return await act()
        self.calls.append(Call(len(self.calls) + 1, operation, key))
        fault = self.faults.get(len(self.calls))
        if fault is Fault.CRASH:
            self.crashed = True
            self._still_alive()
        if fault is Fault.REFUSE:
            raise errors.TransientStorageError("injected: 503", key=key, root=self.root)
        if fault is Fault.PAUSE:
            self.reached.set()
            await self.resume.wait()
        if fault is Fault.DELAY:
            await asyncio.sleep(self.delay_s)
        result = await act()
        if fault is Fault.LOSE_REPLY:
            raise errors.TransientStorageError("injected: lost reply", key=key, root=self.root)
        return result

    def _still_alive(self) -> None:
        if self.crashed:
            raise SimulatedCrash

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`."""
        return await self._numbered(
            "get", key, lambda: self._inner.get(key, byte_range=byte_range), mutates=False
        )

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`: one call where it is one request, else several."""
        if type(self._inner).read is StorageBackend.read:
            return await super().read(key)
        return await self._numbered("read", key, lambda: self._inner.read(key), mutates=False)

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
        how: dict[str, Any] = {"condition": condition, "durable": durable, "parents": parents}
        return await self._numbered("put", key, lambda: self._inner.put(key, data, **how))

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        return await self._numbered("stat", key, lambda: self._inner.stat(key), mutates=False)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await self._numbered("delete", key, lambda: self._inner.delete(key))

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`."""

        async def collect() -> list[ObjectInfo]:
            return [info async for info in self._inner.walk(prefix)]

        for info in await self._numbered("walk", prefix, collect, mutates=False):
            yield info

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`."""
        return await self._numbered(
            "children", prefix, lambda: self._inner.children(prefix), mutates=False
        )

    async def names_in(self, prefixes: Sequence[str]) -> Mapping[str, Names]:
        """See `StorageBackend.names_in`: one call where the store lists them all in one."""
        if type(self._inner).names_in is StorageBackend.names_in:
            return await super().names_in(prefixes)
        return await self._numbered(
            "names", "", lambda: self._inner.names_in(prefixes), mutates=False
        )

    async def rename_prefix(self, source: str, destination: str) -> None:
        """See `StorageBackend.rename_prefix`."""
        await self._numbered(
            "rename", source, lambda: self._inner.rename_prefix(source, destination)
        )

    async def exchange_prefix(self, first: str, second: str) -> None:
        """See `StorageBackend.exchange_prefix`."""
        await self._numbered("exchange", first, lambda: self._inner.exchange_prefix(first, second))

    async def link(self, source: str, destination: str) -> bool:
        """See `StorageBackend.link`."""
        return await self._numbered(
            "link", destination, lambda: self._inner.link(source, destination)
        )

    async def sync_prefix(self, prefix: str) -> None:
        """See `StorageBackend.sync_prefix`."""
        await self._numbered("sync", prefix, lambda: self._inner.sync_prefix(prefix))

    async def abort_uploads(self, prefix: str, *, older_than: float) -> int:
        """See `StorageBackend.abort_uploads`."""
        return await self._numbered(
            "abort", prefix, lambda: self._inner.abort_uploads(prefix, older_than=older_than)
        )

    async def settle(self, parent: str, listing: Listing) -> bool:
        """See `StorageBackend.settle`."""
        self._still_alive()
        return await self._inner.settle(parent, listing)

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`."""
        return self._inner.kv_target(prefix)

    def local_path(self, prefix: str) -> str | None:
        """See `StorageBackend.local_path`."""
        return self._inner.local_path(prefix)

    async def commit_strategy(self) -> CommitStrategy:
        """The inner store's strategy, acting through this view."""
        kind: Callable[[StorageBackend], CommitStrategy] = type(await self._inner.commit_strategy())
        return kind(self)
