"""One of something for each event loop: connections belong to the loop that made them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class PerLoop(Generic[T]):
    """What is made when a loop first asks for it, and goes with the loop."""

    def __init__(self) -> None:
        self._made: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, T] = (
            weakref.WeakKeyDictionary()
        )
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = (
            weakref.WeakKeyDictionary()
        )

    async def get(self, make: Callable[[], Awaitable[T]]) -> T:
        """That of the running loop; tasks that ask at once get the same.

        Args:
            make: Makes it. If that fails, the next who asks tries again.
        """
        loop = asyncio.get_running_loop()
        async with self._locks.setdefault(loop, asyncio.Lock()):
            if loop not in self._made:
                self._made[loop] = await make()
            return self._made[loop]

    def pop(self) -> T | None:
        """Forgets that of the running loop, for the caller to close; None if there is none."""
        return self._made.pop(asyncio.get_running_loop(), None)
