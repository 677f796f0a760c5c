"""Pins: steps that stay, stored beside them, and seen by every process that collects."""

from __future__ import annotations

import asyncio
import time

from holdfast_checkpointer.engine.names import check_item_name
from holdfast_manager.engine.removals import Removals
from holdfast_manager.errors import PinExistsError, PinNotFoundError, StepNotFoundError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import PINS_DIR, Pin
from holdfast_storage import (
    IfAbsent,
    InvalidKeyError,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageTimeoutError,
    keys,
)
from holdfast_storage.commit import SHELTER_FILE, shelter


class Pins:
    """The pins of one run.

    Args:
        run: The run.
        removals: What is about to be removed.
    """

    def __init__(self, run: RunDirectory, removals: Removals) -> None:
        self._backend = run.backend
        self._removals = removals

    async def read(self) -> dict[str, int]:
        """The step of each pin, by name.

        Raises:
            MetadataError: A pin cannot be read: nothing may be removed then.
        """
        listing = await self._backend.children(PINS_DIR)
        names = {keys.leaf(info.key) for info in listing.objects} - {SHELTER_FILE}
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
            StepNotFoundError: The step was removed meanwhile; a new pin was taken back.
            StorageTimeoutError: It is about to be removed, by a process that does not get on; a
                new pin was taken back.
        """
        key = self._key(name)
        pin = Pin(entry.step, name, time.time_ns())
        await shelter(self._backend, PINS_DIR)
        made = True
        try:
            await self._backend.put(key, pin.to_bytes(), condition=IfAbsent())
        except ObjectExistsError:
            there = await self._read(name)
            if there is not None and there.step != entry.step:
                raise PinExistsError(name, there.step, self._backend.root) from None
            made = False
        try:
            await self._removals.settle(entry)
        except (StepNotFoundError, StorageTimeoutError):
            if made:  # an earlier pin holds: whoever removes has seen it, or will
                await self._backend.delete(key)
            raise

    async def unpin(self, name: str) -> None:
        """Removes a pin.

        Raises:
            PinNotFoundError: There is none of that name.
        """
        key = self._key(name)
        if await self._read(name) is None:
            raise PinNotFoundError(name, self._backend.root, await self.read())
        await self._backend.delete(key)

    def _key(self, name: str) -> str:
        try:
            if name == SHELTER_FILE:
                raise InvalidKeyError("that file keeps Orbax's clean-up away")
            return keys.join(PINS_DIR, check_item_name(name))
        except InvalidKeyError as error:
            raise InvalidKeyError(
                f"{name!r} cannot name a pin: that is one segment of a path, not starting with "
                "'.' or '_'"
            ) from error
