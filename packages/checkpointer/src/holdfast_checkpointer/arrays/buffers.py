"""Host memory for loads: aligned so that JAX takes it over, and bounded while in flight."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from holdfast_checkpointer.arrays.plan import Shape

ALIGNMENT = 64


def aligned_empty(shape: Shape, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A fresh array on a 64-byte boundary.

    JAX on the CPU makes such memory its own without a copy, so it belongs to one array for
    ever and is never pooled.
    """
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size].view(dtype).reshape(shape)


class ByteBudget:
    """Lets work through while its bytes together stay within a limit.

    One piece that is larger than the whole limit goes alone.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._freed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Waits until `size` bytes are free, and holds them for the block."""
        async with self._freed:
            await self._freed.wait_for(lambda: self._used == 0 or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            async with self._freed:
                self._used -= size
                self._freed.notify_all()
