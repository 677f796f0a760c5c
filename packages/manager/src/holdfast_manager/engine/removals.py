"""What is about to be removed, announced so that whoever holds a step sees it.

A hold and a removal may be under way at the same time, in different processes. Each first
says what it is about to do, then looks at what the other said: the remover lists the steps
in `_collecting/` before it reads the holds for the last time; whoever holds a step
writes that before it reads the list. So at least one sees the other. The remover spares
what is held; whoever holds waits until the list is gone, and then asks whether the step is
there.
"""

from __future__ import annotations

import asyncio
import functools
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from holdfast_manager.engine.reaper import Background
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import COLLECTING_DIR, Collecting
from holdfast_storage import (
    ObjectInfo,
    ObjectNotFoundError,
    StorageFullError,
    StorageTimeoutError,
    keys,
)
from holdfast_storage.commit import guard, identity
from holdfast_storage.commit.sweep import StoreClock

Clock: TypeAlias = Callable[[], Awaitable[float]]


class Removals:
    """The announcements of one run, from both sides.

    Args:
        run: The run.
        patience_s: How long `settle` waits for a removal that is under way, in seconds.
        pause_s: Between two looks.

    Attributes:
        ending: Announcements that are taken back.
    """

    def __init__(self, run: RunDirectory, *, patience_s: float, pause_s: float) -> None:
        self._run = run
        self._backend = run.backend
        self._patience_s = patience_s
        self._pause_s = pause_s
        self.ending = Background()

    @asynccontextmanager
    async def announced(self, names: Sequence[str]) -> AsyncIterator[Clock]:
        """Announces a removal; gives what tells the store's time when that was."""
        by = identity.new_mark(uuid.uuid4().hex, "removal", extra=guard.said_in_marks())
        key = keys.join(COLLECTING_DIR, by.attempt)
        try:
            await self._backend.put(key, Collecting(tuple(names), by).to_bytes())
        except StorageFullError:
            # Who has no room left is who needs to remove. An empty object takes none; its name
            # says by whom it is, and that any step may go.
            key = f"{key}.{identity.in_a_name(by)}"
            await self._backend.put(key, b"")

        async def when() -> float:
            return (await self._backend.stat(key)).modified

        try:
            yield when
        finally:
            # Nobody who removes waits for this; who holds one of these steps does.
            delete = functools.partial(self._backend.delete, key)
            self.ending.add(delete, f"the announcement {key}")

    async def forget_dead(self) -> None:
        """Clears what removers left that are provably gone, or silent for an hour."""
        clock = StoreClock(self._backend, "")
        for info, said in await self._under_way():
            if identity.is_gone(said.by) or await clock.age(info.modified) > said.by.ttl_s:
                await self._backend.delete(info.key)

    async def _under_way(self) -> list[tuple[ObjectInfo, Collecting]]:
        """What is about to be removed, and by whom; without names it may be anything."""
        found = []
        for info in (await self._backend.children(COLLECTING_DIR)).objects:
            try:
                data = await self._backend.get(info.key)
            except ObjectNotFoundError:
                continue  # done since the listing
            said = Collecting.from_bytes(data, source=info.key) if data else _wordless(info.key)
            found.append((info, said))
        return found

    async def settle(self, entry: CheckpointMetadata) -> None:
        """Waits until nobody is about to remove a step, which the caller holds by now.

        Raises:
            StepNotFoundError: It was removed; the caller takes the hold back.
            StorageTimeoutError: It is about to be removed, by a process that does not get on.
        """
        deadline = time.monotonic() + self._patience_s
        while await self._is_being_removed(entry):
            if time.monotonic() > deadline:
                raise StorageTimeoutError(
                    f"step {entry.step} is about to be removed by another process; nothing holds "
                    "it now. If that process died, the next one that saves to the run clears this",
                    key=COLLECTING_DIR,
                    root=self._backend.root,
                )
            await asyncio.sleep(self._pause_s)
        if not await self._run.is_there(entry):
            raise StepNotFoundError(entry.step, self._backend.root, [])

    async def _is_being_removed(self, entry: CheckpointMetadata) -> bool:
        return any(
            (not said.names or entry.name in said.names) and not identity.is_gone(said.by)
            for _, said in await self._under_way()
        )


def _wordless(key: str) -> Collecting:
    attempt, _, by = keys.leaf(key).partition(".")
    return Collecting((), identity.from_a_name(by, attempt, "removal"))
