"""Pins: steps that stay, stored beside them, and seen by every process that collects.

A pin and a removal may be under way at the same time, in different processes. Each first
says what it is about to do, then looks at what the other said: the remover lists the steps
in `.holdfast-collecting` before it reads the pins for the last time; whoever pins writes the
pin before it reads that list. So at least one sees the other. The remover spares what is
pinned; whoever pins waits until the list is gone, and then asks whether the step is there.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from holdfast_checkpointer.engine.names import check_item_name
from holdfast_manager.errors import PinExistsError, PinNotFoundError, StepNotFoundError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import COLLECTING_FILE, PINS_DIR, Collecting, Pin
from holdfast_storage import (
    IfAbsent,
    InvalidKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageTimeoutError,
    keys,
)
from holdfast_storage.commit import identity
from holdfast_storage.commit.sweep import StoreClock


class Pins:
    """The pins of one run.

    Args:
        run: The run.
        patience_s: How long `pin` waits for a removal that is under way, in seconds.
        pause_s: Between two looks.
    """

    def __init__(
        self, run: RunDirectory, *, patience_s: float = 60.0, pause_s: float = 0.05
    ) -> None:
        self._run = run
        self._backend = run.backend
        self._patience_s = patience_s
        self._pause_s = pause_s

    async def read(self) -> dict[str, int]:
        """The step of each pin, by name.

        Raises:
            MetadataError: A pin cannot be read: nothing may be removed then.
        """
        listing = await self._backend.children(PINS_DIR)
        names = [keys.leaf(info.key) for info in listing.objects]
        found = await asyncio.gather(*(self._read(n) for n in names))
        return {pin.name: pin.step for pin in found if pin is not None}

    async def by_step(self) -> dict[int, list[str]]:
        """The names of the pins of each step."""
        found: dict[int, list[str]] = {}
        for name, step in sorted((await self.read()).items()):
            found.setdefault(step, []).append(name)
        return found

    async def _read(self, name: str) -> Pin | None:
        key = keys.join(PINS_DIR, name)
        try:
            return Pin.from_bytes(await self._backend.get(key), source=key)
        except ObjectNotFoundError:
            return None  # unpinned since the listing

    async def pin(self, entry: CheckpointMetadata, name: str) -> None:
        """Pins a committed step; a second time changes nothing.

        Raises:
            InvalidKeyError: A pin cannot be called that.
            PinExistsError: The name holds another step.
            StepNotFoundError: The step was removed meanwhile; the pin was taken back.
            StorageTimeoutError: It is about to be removed, by a process that does not get on.
        """
        key = self._key(name)
        pin = Pin(entry.step, name, time.time_ns())
        try:
            await self._backend.put(key, pin.to_bytes(), condition=IfAbsent())
        except ObjectExistsError:
            there = await self._read(name)
            if there is not None and there.step != entry.step:
                raise PinExistsError(name, there.step, self._backend.root) from None
        await self._wait_for_removal(entry, key)
        if not await self._run.is_there(entry):
            await self._backend.delete(key)
            raise StepNotFoundError(entry.step, self._backend.root, [])

    async def unpin(self, name: str) -> None:
        """Removes a pin.

        Raises:
            PinNotFoundError: There is none of that name.
        """
        key = self._key(name)
        if await self._read(name) is None:
            raise PinNotFoundError(name, self._backend.root, await self.read())
        await self._backend.delete(key)

    @asynccontextmanager
    async def removing(self, names: Sequence[str]) -> AsyncIterator[dict[int, list[str]]]:
        """Announces a removal, then gives the pins that are to be respected."""
        said = Collecting(tuple(names), identity.new_mark(uuid.uuid4().hex, "removal"))
        await self._backend.put(COLLECTING_FILE, said.to_bytes())
        try:
            yield await self.by_step()
        finally:
            await self._backend.delete(COLLECTING_FILE)

    def _key(self, name: str) -> str:
        try:
            return keys.join(PINS_DIR, check_item_name(name))
        except InvalidKeyError as error:
            raise InvalidKeyError(
                f"{name!r} cannot name a pin: that is one segment of a path, not starting with "
                "'.' or '_'"
            ) from error

    async def forget_dead_removal(self) -> None:
        """Clears what a remover left that is provably gone, or silent for an hour."""
        try:
            info, data = await self._backend.read(COLLECTING_FILE)
        except ObjectNotFoundError:
            return
        said = Collecting.from_bytes(data, source=COLLECTING_FILE)
        dead = identity.is_gone(said.by)
        if dead or await StoreClock(self._backend, "").age(info.modified) > said.by.ttl_s:
            await self._backend.delete(COLLECTING_FILE)

    async def _wait_for_removal(self, entry: CheckpointMetadata, key: str) -> None:
        deadline = time.monotonic() + self._patience_s
        while await self._is_being_removed(entry):
            if time.monotonic() > deadline:
                await self._backend.delete(key)
                raise StorageTimeoutError(
                    f"step {entry.step} is about to be removed by another process; it was not "
                    "pinned. If that process died, the next one that saves to the run clears this",
                    key=COLLECTING_FILE,
                    root=self._backend.root,
                )
            await asyncio.sleep(self._pause_s)

    async def _is_being_removed(self, entry: CheckpointMetadata) -> bool:
        try:
            data = await self._backend.get(COLLECTING_FILE)
        except ObjectNotFoundError:
            return False
        said = Collecting.from_bytes(data, source=COLLECTING_FILE)
        return entry.name in said.names and not identity.is_gone(said.by)
