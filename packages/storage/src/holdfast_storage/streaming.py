"""Large objects in pieces, so that none need fit the memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from holdfast_metadata import Digester
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import ByteRange

PIECE_BYTES = 16 << 20


async def digest_object(backend: StorageBackend, key: str, size: int) -> str:
    """The digest of an object, read piece by piece.

    Raises:
        ObjectNotFoundError: It is not there.
        StorageError: It is shorter than `size`.
    """
    if size <= PIECE_BYTES:
        pieces = [(0, size)]
    else:
        pieces = [(at, min(at + PIECE_BYTES, size)) for at in range(0, size, PIECE_BYTES)]
    digester = Digester()
    for start, stop in pieces:
        data = await backend.get(key, byte_range=ByteRange(start, stop))
        if len(data) != stop - start:
            raise errors.StorageError(
                f"the object has fewer than its {size} bytes: it changed while it was read",
                key=key,
                root=backend.root,
            )
        digester.update(data)
    return digester.digest()


class ByteBudget:
    """Bytes that may be in memory at once; one object larger than all of it goes alone.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def taking(self, size: int) -> AsyncIterator[None]:
        """Waits until `size` bytes are free and holds them for the block."""
        taken = min(size, self._limit)
        async with self._freed:
            await self._freed.wait_for(lambda: self._used + taken <= self._limit)
            self._used += taken
        try:
            yield
        finally:
            async with self._freed:
                self._used -= taken
                self._freed.notify_all()
