"""A plain folder to write into: no attempt, no commit, no manifest."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import KvTarget


class DirectArea:
    """A `WriteArea` on a folder of any store. What is written is there at once, piece by piece."""

    def __init__(self, backend: StorageBackend, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix

    @property
    def label(self) -> str:
        """Where this is, for messages."""
        return f"{self._backend.root.rstrip('/')}/{self._prefix}"

    def child(self, name: str) -> DirectArea:
        """A scope below this one; no I/O."""
        return DirectArea(self._backend, self._key(name))

    async def put(self, name: str, data: bytes) -> None:
        """Stores a small file, in place of one of that name; durable after `sync`."""
        await self._backend.put(self._key(name), data, durable=False)

    def kv_target(self, name: str = "") -> KvTarget:
        """How TensorStore writes below this scope."""
        return self._backend.kv_target(self._key(name) if name else self._prefix)

    def local_path(self) -> str | None:
        """See `WriteArea.local_path`."""
        return self._backend.local_path(self._prefix)

    async def files(self) -> Mapping[str, int]:
        """See `WriteArea.files`."""
        walked = self._backend.walk(self._prefix)
        return {keys.relative(info.key, self._prefix): info.size async for info in walked}

    async def delete(self, name: str) -> None:
        """Removes a file; succeeds if it is absent."""
        await self._backend.delete(self._key(name))

    async def sync(self) -> None:
        """Makes everything below this scope durable."""
        await self._backend.sync_prefix(self._prefix)

    def _key(self, name: str) -> str:
        keys.check_key(name, root=self.label)
        return keys.join(self._prefix, name)
