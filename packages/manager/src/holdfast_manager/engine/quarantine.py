"""What a run does about steps that are there and not good."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Awaitable, Callable, Collection

from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.errors import StepNotQuarantinedError
from holdfast_manager.quarantine import Aside
from holdfast_manager.quarantine.looking import find_damage, identity_of
from holdfast_manager.quarantine.marks import is_true_still
from holdfast_manager.run_directory import RunDirectory
from holdfast_storage import RecordUnreadableError, StorageError

_log = logging.getLogger(__name__)


class Quarantine:
    """Sets damaged steps aside, and lets them go.

    Args:
        run: The run.
        known: Its steps.
        written_elsewhere: Whether another process writes to the run. Then this one leaves no
            marks in it: what it finds is true for itself.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        written_elsewhere: Callable[[], Awaitable[bool]],
    ) -> None:
        self._run = run
        self._known = known
        self._written_elsewhere = written_elsewhere

    async def keep(self, aside: Aside, error: Exception) -> Aside:
        """Sets a step aside, and marks it where that can be done. Raises nothing of storage."""
        try:
            if not await is_true_still(self._run.backend, aside.entry, aside):
                return aside  # replaced or repaired since
        except StorageError:
            _log.debug("%s was not looked at again", aside.entry.path, exc_info=True)
        self._run.marks.remember(aside)
        self._known.set_aside(aside)
        try:
            if not await self._written_elsewhere() and await self._run.marks.put(aside, error):
                return dataclasses.replace(aside, marked=True)
        except StorageError:
            _log.warning("the quarantine of %s was not stored", aside.entry.path, exc_info=True)
        return aside

    async def may_replace(self, step: int) -> bool:
        """Whether a save may take the place of a step without being told to overwrite.

        It is asked just before, for a copy may have gone on meanwhile.
        """
        aside = self._known.aside(step)
        if aside is None or aside.told.problem == "unreadable":
            return False
        return await is_true_still(self._run.backend, aside.entry, aside)

    async def forget(self, name: str, *, unless: str | None = None) -> None:
        """Removes what is said of a folder whose step was saved anew (`unless`), or removed.

        A mark that stays says nothing of another attempt; the next sweep removes it.
        """
        try:
            await self._run.marks.remove(name, unless=unless)
        except StorageError:
            _log.debug("the mark of %s stays for now", name, exc_info=True)

    async def mark_torn(self) -> None:
        """Marks what opening the run found not whole. For the run's writer.

        Opening looks at the newest step only: once a newer one is committed, nothing else
        would tell this one from a good one.
        """
        for aside in self._known.all_aside():
            if aside.marked or not aside.entry.ours:
                continue
            try:
                error = await find_damage(self._run.backend, aside.entry)
            except RecordUnreadableError:
                continue  # no damage
            if aside.told.problem == "unreadable":  # it was not looked into
                identity = await identity_of(self._run.backend, aside.entry)
                aside = dataclasses.replace(aside, identity=identity)
            if error is not None and await self._run.marks.put(aside, error):
                self._known.set_aside(dataclasses.replace(aside, marked=True))

    async def release(self, step: int) -> None:
        """Takes a step out of quarantine; see `Checkpointer.unquarantine`."""
        await self._known.refresh()
        aside = self._known.aside(step)
        if aside is None:
            quarantined = [one.entry.step for one in self._known.all_aside()]
            raise StepNotQuarantinedError(step, self._run.label, quarantined)
        await self._run.marks.remove(aside.entry.name)
        await self._known.refresh()

    async def tidy(self, in_trash: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Removes marks that say nothing any more. For the run's writer.

        Args:
            in_trash: Lists the attempts in the trash, which may come back.
        """
        await self._run.marks.tidy(in_trash)
