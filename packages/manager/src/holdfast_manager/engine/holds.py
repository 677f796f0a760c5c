"""Holds: what keeps a step whatever a policy says. Pins stay; a reader's lease passes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from holdfast_manager.engine.pins import Pins
from holdfast_manager.engine.readers import Readers
from holdfast_manager.engine.removals import Clock, Removals
from holdfast_manager.run_directory import RunDirectory
from holdfast_storage.commit.sweep import StoreClock


class Holds:
    """The holds of one run.

    Args:
        run: The run.
        patience_s: How long whoever holds waits for a removal that is under way, in seconds.
        pause_s: Between two looks.

    Attributes:
        removals: What is about to be removed.
        pins: Steps that stay until they are unpinned.
        readers: Steps that are being read.
    """

    def __init__(
        self, run: RunDirectory, *, patience_s: float = 60.0, pause_s: float = 0.05
    ) -> None:
        self._backend = run.backend
        self.removals = Removals(run, patience_s=patience_s, pause_s=pause_s)
        self.pins = Pins(run, self.removals)
        self.readers = Readers(run, self.removals)

    async def by_step(self, *, writing: bool) -> Mapping[int, Sequence[str]]:
        """What holds each step, in words.

        Args:
            writing: Ask the store for its time, by a small object, if that decides whether a
                reader is dead. Otherwise every one counts that is not provably gone.

        Raises:
            MetadataError: A hold cannot be read: nothing may be removed then.
        """
        return await self._reasons(self._ask if writing else None)

    @asynccontextmanager
    async def removing(self, names: Sequence[str]) -> AsyncIterator[Mapping[int, Sequence[str]]]:
        """Announces a removal, then says what holds each step, which is to be respected."""
        async with self.removals.announced(names) as when:
            yield await self._reasons(when)

    async def _reasons(self, clock: Clock | None) -> dict[int, list[str]]:
        pins, readers = await asyncio.gather(self.pins.by_step(), self.readers.by_step(clock))
        found: dict[int, list[str]] = {}
        for step, names in pins.items():
            found[step] = [f"it is pinned as {name!r}" for name in names]
        for step, who in readers.items():
            found.setdefault(step, []).extend(f"it is being read by {one}" for one in who)
        return found

    async def _ask(self) -> float:
        return await StoreClock(self._backend, "").age(0.0)
