"""How fast data is deleted."""

from __future__ import annotations

import asyncio
import time

from holdfast_metadata import ATTEMPT_FILE
from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend


class Pace:
    """Deletions of objects at a bounded rate, whoever shares this.

    Args:
        per_second: Objects; None is as fast as the store goes, many in one request.
    """

    def __init__(self, per_second: float | None = None) -> None:
        self._pause_s = 0.0 if per_second is None else 1.0 / per_second
        self._next = 0.0

    async def turn(self) -> None:
        """Waits until one more object may be deleted."""
        now = time.monotonic()
        mine = max(self._next, now)
        self._next = mine + self._pause_s
        if mine > now:
            await asyncio.sleep(mine - now)

    async def delete_prefix(self, backend: StorageBackend, prefix: str) -> None:
        """As `StorageBackend.delete_prefix`, at this rate: the marks of attempts go last."""
        if self._pause_s:
            async for info in backend.walk(prefix):
                if keys.leaf(info.key) != ATTEMPT_FILE:
                    await self.turn()
                    await backend.delete(info.key)
        await backend.delete_prefix(prefix)  # the marks, and what folders there are
