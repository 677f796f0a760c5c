"""Keeping the hints of a run right; they decide nothing, so that a failure loses nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import TypeAlias

from holdfast_storage import StorageBackend, StorageError
from holdfast_storage.commit import read_record, read_records, remove_hint, write_hint

PATIENCE_S = 2.0
_log = logging.getLogger(__name__)
Names: TypeAlias = Callable[[], Awaitable[tuple[Collection[str], frozenset[str]]]]


class HintKeeper:
    """Writes and removes the hints of one run.

    Args:
        backend: The storage of the run.
        list_names: Lists the folders named as steps, and the names that have a hint.

    Attributes:
        suspects: Names whose hint turned out to be wrong.
    """

    def __init__(self, backend: StorageBackend, list_names: Names) -> None:
        self._backend = backend
        self._list_names = list_names
        self.suspects: set[str] = set()

    async def add(self, name: str) -> None:
        """Leaves the hint that opening the run later looks for; the step is safe without."""
        await self._as_good_as_it_goes(write_hint(self._backend, name))

    async def take(self, name: str) -> None:
        """Removes the hint of a step before it is un-committed.

        A store that takes long for it delays nothing: the hint decides nothing, and goes later.

        Raises:
            StorageError: The store refused.
        """
        work = asyncio.ensure_future(remove_hint(self._backend, name))
        done, _ = await asyncio.wait([work], timeout=PATIENCE_S)
        if done:
            await work
        else:
            self.suspects.add(name)
            work.add_done_callback(self._told)

    def _told(self, work: asyncio.Future[None]) -> None:
        if not work.cancelled() and work.exception() is not None:
            _log.debug("a hint of %s stays for now: %s", self._backend.root, work.exception())

    async def remove(self, name: str) -> None:
        """Removes the hint of a step that turned out not to be committed; delays nothing either."""
        await self._as_good_as_it_goes(self.take(name))

    async def _as_good_as_it_goes(self, change: Awaitable[None]) -> None:
        try:
            await change
        except StorageError:
            _log.debug("a hint of %s could not be changed", self._backend.root, exc_info=True)

    async def repair(self) -> None:
        """Adds the hints that are missing and removes those that are wrong.

        A hint is written before the record is read: a step that is un-committed meanwhile
        loses it again, here or there.
        """
        if not self._backend.hints.round_trips:
            return
        steps, hints = await self._list_names()
        names = frozenset(steps)
        wrong = hints & self.suspects
        missing = (await read_records(self._backend, sorted(names - hints))).committed
        for entry in missing:
            await write_hint(self._backend, entry.name)
        for name in sorted(wrong.union(entry.name for entry in missing)):
            if not (await read_record(self._backend, name)).committed:
                await remove_hint(self._backend, name)
        for name in sorted(hints - names):
            await remove_hint(self._backend, name)
