"""A store in a dictionary whose capabilities are chosen: every strategy in one process.

Calls are atomic and time moves by one second with each write, so a run is repeatable.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

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
    ObjectInfo,
    ObjectVersion,
    Precondition,
)

if TYPE_CHECKING:
    from holdfast_storage.commit.strategy import CommitStrategy


@dataclass(frozen=True, slots=True)
class _Stored:
    data: bytes
    tick: int


class TableBackend(StorageBackend):
    """Objects in a dictionary.

    Args:
        rename: Offer `rename_prefix`; the commit strategy is then `RenameCommit`.
        exchange: Offer `exchange_prefix`.
        swap: Offer compare-and-swap.
        decided: As a hierarchical bucket: folders come by themselves with a put, and the
            commit strategy is `DecidedRenameCommit`.
    """

    scheme: ClassVar[str] = "table"

    def __init__(
        self,
        *,
        rename: bool = False,
        exchange: bool = False,
        swap: bool = True,
        decided: bool = False,
    ) -> None:
        self._decided = decided
        self.root = "table://test"
        self.capabilities = Capabilities(
            create_if_absent=True,
            compare_and_swap=swap,
            rename_prefix=rename or decided,
            exchange_prefix=exchange,
        )
        self.hints = IoHints(target_file_bytes=1 << 20, max_concurrency=4, coalesce_bytes=0)
        self.objects = {}
        self._tick = 0

    @property
    def objects(self) -> Mapping[str, _Stored]:
        """All that is stored; assign a copy to go back to it."""
        return self._objects

    @objects.setter
    def objects(self, objects: Mapping[str, _Stored]) -> None:
        self._objects = dict(objects)
        self._names = sorted(objects)

    def _keep(self, key: str, stored: _Stored) -> None:
        if key not in self._objects:
            insort(self._names, key)
        self._objects[key] = stored

    def _take(self, key: str) -> _Stored:
        del self._names[bisect_left(self._names, key)]
        return self._objects.pop(key)

    def _info(self, key: str) -> ObjectInfo:
        found = self.objects[key]
        version = ObjectVersion(str(found.tick))
        return ObjectInfo(key, len(found.data), version, float(found.tick))

    def _absent(self, key: str) -> errors.ObjectNotFoundError:
        return errors.ObjectNotFoundError("no such object", key=key, root=self.root)

    def _below(self, prefix: str) -> list[str]:
        if not prefix:
            return list(self._names)
        first, after = (bisect_left(self._names, prefix + mark) for mark in "/0")  # "0" follows "/"
        return self._names[first:after]

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`."""
        await asyncio.sleep(0)
        if key not in self.objects:
            raise self._absent(key)
        data = self.objects[key].data
        return data if byte_range is None else data[byte_range.start : byte_range.stop]

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
        self._check(key, condition)
        folder = keys.parent(key)
        strict = self.capabilities.rename_prefix and not self._decided and not parents
        if strict and folder and not self._below(folder):
            raise self._absent(key)
        self._tick += 1
        self._keep(key, _Stored(bytes(data), self._tick))
        return self._info(key).version

    def _check(self, key: str, condition: Precondition | None) -> None:
        if isinstance(condition, IfAbsent) and key in self.objects:
            raise errors.ObjectExistsError("the object exists", key=key, root=self.root)
        if isinstance(condition, IfVersion):
            if not self.capabilities.compare_and_swap:
                raise errors.UnsupportedOperationError("no compare-and-swap", key=key)
            if key not in self.objects or self._info(key).version != condition.version:
                raise errors.PreconditionFailedError("another version", key=key, root=self.root)

    async def stat(self, key: str) -> ObjectInfo:
        """See `StorageBackend.stat`."""
        await asyncio.sleep(0)
        if key not in self.objects:
            raise self._absent(key)
        return self._info(key)

    async def delete(self, key: str) -> None:
        """See `StorageBackend.delete`."""
        await asyncio.sleep(0)
        if key in self.objects:
            self._take(key)

    async def walk(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """See `StorageBackend.walk`."""
        await asyncio.sleep(0)
        for key in reversed(self._below(prefix)):  # no order is promised
            if key in self.objects:
                yield self._info(key)

    async def children(self, prefix: str) -> Listing:
        """See `StorageBackend.children`."""
        await asyncio.sleep(0)
        prefixes, objects = set(), []
        for key in self._below(prefix):
            head, slash, _ = keys.relative(key, prefix).partition("/")
            if slash:
                prefixes.add(keys.join(prefix, head))
            else:
                objects.append(self._info(key))
        return Listing(tuple(sorted(prefixes)), tuple(objects))

    async def rename_prefix(self, source: str, destination: str) -> None:
        """See `StorageBackend.rename_prefix`."""
        if not self.capabilities.rename_prefix:
            await super().rename_prefix(source, destination)
        await asyncio.sleep(0)
        moving = self._below(source)
        if not moving:
            raise self._absent(source)
        if destination in self.objects or self._below(destination):
            raise errors.ObjectExistsError("not empty", key=destination, root=self.root)
        if self._decided:
            # The look at the destination and the move are two requests, and what the second
            # does to a destination that came in between is not documented: here, the worst.
            for _ in range(50):
                await asyncio.sleep(0)
            moving = self._below(source)
            if not moving:
                raise self._absent(source)
        folder = keys.parent(destination)
        if folder and not self._below(folder):
            raise self._absent(folder)
        for key in moving:
            self._keep(keys.join(destination, keys.relative(key, source)), self._take(key))

    async def exchange_prefix(self, first: str, second: str) -> None:
        """See `StorageBackend.exchange_prefix`."""
        if not self.capabilities.exchange_prefix:
            await super().exchange_prefix(first, second)
        await asyncio.sleep(0)
        one, two = self._below(first), self._below(second)
        if not one or not two:
            raise self._absent(first if not one else second)
        moved = {keys.join(second, keys.relative(k, first)): self._take(k) for k in one}
        moved |= {keys.join(first, keys.relative(k, second)): self._take(k) for k in two}
        for key, stored in moved.items():
            self._keep(key, stored)

    async def settle(self, parent: str, listing: Listing) -> bool:
        """See `StorageBackend.settle`."""
        if not self._decided:
            return False
        from holdfast_storage.commit.decided import DecidedRenameCommit

        return await DecidedRenameCommit(self).settle(parent, listing)

    def kv_target(self, prefix: str) -> KvTarget:
        """See `StorageBackend.kv_target`. Nothing reaches a dictionary from outside."""
        return KvTarget({"driver": "none", "path": f"{prefix}/"}, {}, self.hints)

    async def commit_strategy(self) -> CommitStrategy:
        """The strategy that the capabilities allow."""
        from holdfast_storage.commit import DecidedRenameCommit, PointerCommit, RenameCommit

        if self._decided:
            return DecidedRenameCommit(self)
        return RenameCommit(self) if self.capabilities.rename_prefix else PointerCommit(self)
