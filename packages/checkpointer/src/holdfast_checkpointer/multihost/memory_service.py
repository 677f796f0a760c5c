"""A key/value service inside one process, which counts what is asked of it."""

from __future__ import annotations

import asyncio
import collections

from holdfast_checkpointer.multihost.service import KeyTaken


class MemoryService:
    """For simulated processes on one event loop.

    Attributes:
        calls: How often each method was called; a wait counts once.
    """

    def __init__(self) -> None:
        self._values: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
        self._waiting: dict[str, set[asyncio.Future[bytes]]] = collections.defaultdict(set)
        self.calls: collections.Counter[str] = collections.Counter()

    @property
    def keys(self) -> list[str]:
        """Every key that is set."""
        return sorted(
            f"{folder}/{leaf}" for folder, found in self._values.items() for leaf in found
        )

    async def put(self, key: str, value: bytes, *, overwrite: bool = False) -> None:
        """See `KeyValueService.put`."""
        self.calls["put"] += 1
        folder, _, leaf = key.rpartition("/")
        if leaf in self._values[folder] and not overwrite:
            raise KeyTaken(key)
        self._values[folder][leaf] = value
        for waiting in self._waiting.pop(key, ()):
            if not waiting.done():
                waiting.set_result(value)

    async def get(self, key: str, *, timeout_s: float) -> bytes:
        """See `KeyValueService.get`."""
        self.calls["get"] += 1
        folder, _, leaf = key.rpartition("/")
        if leaf in self._values[folder]:
            return self._values[folder][leaf]
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[key].add(waiting)
        async with asyncio.timeout(timeout_s):
            return await waiting

    async def list(self, prefix: str) -> dict[str, bytes]:
        """See `KeyValueService.list`."""
        self.calls["list"] += 1
        inside = prefix.rstrip("/") + "/"
        return {
            f"{folder}/{leaf}": value
            for folder, found in self._values.items()
            if f"{folder}/".startswith(inside)
            for leaf, value in found.items()
        }

    async def increment(self, key: str) -> int:
        """See `KeyValueService.increment`."""
        self.calls["increment"] += 1
        folder, _, leaf = key.rpartition("/")
        count = int(self._values[folder].get(leaf, b"0")) + 1
        self._values[folder][leaf] = str(count).encode()
        return count

    async def delete(self, prefix: str) -> None:
        """See `KeyValueService.delete`."""
        self.calls["delete"] += 1
        folder, _, leaf = prefix.rpartition("/")
        self._values[folder].pop(leaf, None)
        inside = prefix.rstrip("/") + "/"
        for found in [name for name in self._values if f"{name}/".startswith(inside)]:
            del self._values[found]
