"""The steps of a run that were removed and may come back."""

from __future__ import annotations

import datetime
import functools
import math
from dataclasses import dataclass

from holdfast_manager.engine.deletion import Trash
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.reaper import Reaper
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import StepAlreadyExistsError, StepNotInTrashError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.step_names import step_in
from holdfast_manager.steps import UNREAD, CheckpointMetadata
from holdfast_storage import (
    CheckpointNotFoundError,
    CommitConflictError,
    DamagedCheckpointError,
    StorageBackend,
    StorageError,
)
from holdfast_storage.commit import SweepReport, TrashEntry, guard
from holdfast_storage.commit import Trash as TrashFolder
from holdfast_storage.commit.sweep import StoreClock
from holdfast_storage.loop import get_loop


@dataclass(frozen=True)
class TrashedStep:
    """A step in the trash.

    Attributes:
        step: Its step.
        name: Its folder in the run, where it was and comes back to.
        time: When it went to the trash, by the store's clock, in UTC.
    """

    step: int
    name: str
    time: datetime.datetime
    _entry: TrashEntry
    _backend: StorageBackend

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files; asked of the storage."""
        return get_loop().run(self._size())

    async def _size(self) -> int:
        return sum([info.size async for info in self._backend.walk(self._entry.prefix)])

    def __repr__(self) -> str:
        return f"TrashedStep(step={self.step}, name={self.name!r}, time={self.time.isoformat()})"


class RunTrash:
    """The trash of one run.

    Args:
        run: The run.
        known: Its steps.
        lease: Who may write.
        reaper: Deletes data in the background.
        settings: Whether removed steps go there, and for how long; None is no. What is in
            it can be listed, restored and emptied all the same.

    Raises:
        ValueError: The trash would be called as a step is.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        lease: WritingLease,
        reaper: Reaper,
        settings: Trash | None,
    ) -> None:
        self._run = run
        self._known = known
        self._lease = lease
        self._reaper = reaper
        self._settings = settings or Trash()
        self._settings.check_beside(run.name_format)
        self.enabled = settings is not None
        self._folder = TrashFolder(run.backend, self._settings.prefix, reaper.pace)

    async def put(self, entry: CheckpointMetadata) -> None:
        """Un-commits a step and keeps it; raises as `RunDirectory.uncommit`."""
        expected = await self._run.attempt_of(entry)
        await self._run.forget_hint(entry)
        await self._folder.put(entry.name, expected=expected)

    async def takes_orbax(self) -> bool:
        """Whether the trash takes what Orbax wrote: where folders move."""
        return await self._folder.takes_orbax()

    async def steps(self) -> list[TrashedStep]:
        """What is in the trash, oldest first."""
        found = []
        for entry in await self._folder.entries():
            step = step_in(self._run.name_format, entry.final)
            if step is not None:
                time = datetime.datetime.fromtimestamp(entry.trashed, datetime.UTC)
                found.append(TrashedStep(step, entry.final, time, entry, self._run.backend))
        return found

    async def attempts(self) -> set[str]:
        """The attempts that are in the trash."""
        return {one.attempt for one in await self._folder.entries() if one.attempt is not None}

    async def restore(self, wanted: int | TrashedStep) -> None:
        """Brings a step back under the lease of the run; raises as `_restore`."""
        async with self._lease.writing():
            await self._restore(wanted)

    async def _restore(self, wanted: int | TrashedStep) -> None:
        """Brings a step back, of several of its number the one that was removed last.

        Raises:
            StepNotInTrashError: The message lists what is there.
            StepAlreadyExistsError: The step is committed anew; both stay as they are.
            DestinationOccupiedError: Something else is in the way.
            DamagedCheckpointError: Files of it are missing; it stays in the trash.
        """
        there = await self.steps()
        number = wanted.step if isinstance(wanted, TrashedStep) else wanted
        found = [one for one in there if one.step == number]
        if isinstance(wanted, TrashedStep):
            found = [one for one in found if one._entry.prefix == wanted._entry.prefix]
        if not found:
            raise StepNotInTrashError(number, self._run.label, [one.step for one in there])
        chosen = found[-1]
        for entry in await self._run.list_steps():
            # Perhaps in a folder of another name; and a hint may be stale.
            if entry.step == number and await self._run.is_there(entry):
                raise StepAlreadyExistsError(number, self._run.label, hint=_BOTH_STAY)
        try:
            await self._folder.restore(chosen._entry)
        except CommitConflictError as error:
            raise StepAlreadyExistsError(number, self._run.label, hint=_BOTH_STAY) from error
        except (CheckpointNotFoundError, DamagedCheckpointError) as error:
            left = await self.steps()
            if chosen._entry.prefix in [one._entry.prefix for one in left]:
                raise
            # It was given up, or brought back, at this moment.
            raise StepNotInTrashError(number, self._run.label, [o.step for o in left]) from error
        ours = chosen._entry.attempt is not None
        entry = self._run.describe(number, UNREAD, chosen.name, ours=ours)
        if ours:
            await self._run.note_commit(entry)
        self._known.add(entry)
        told = await self._run.marks.judge(entry)
        if told is not None:  # it was quarantined when it was removed
            self._known.set_aside(told)

    async def empty(self, older_than: datetime.timedelta) -> list[int]:
        """Gives up what has been there for so long; the data is deleted behind that.

        Returns:
            The steps that cannot come back any more.
        """
        async with self._lease.removing():
            await guard.require()
            with guard.unguarded():
                return await self._empty(older_than)

    async def _empty(self, older_than: datetime.timedelta) -> list[int]:
        until = math.inf
        if older_than:  # after each save: most often one listing says that nothing is due
            tickets = await self._folder.tickets()
            if not tickets:
                return []
            now = await StoreClock(self._run.backend, "").age(0.0)
            until = now - older_than.total_seconds()
            if tickets[0].modified > until:
                return []
        gone = []
        for entry in await self._folder.entries(until=until):
            try:
                removal = await self._folder.empty(entry)
            except StorageError as error:  # it came back, or goes the next time
                self._reaper.report(f"{entry.final} in the trash", error)
                continue
            self._reaper.add(removal, f"{entry.final} in the trash")
            step = step_in(self._run.name_format, entry.final)
            gone += [] if step is None else [step]
        return sorted(gone)

    def empty_by_age(self) -> None:
        """Gives up in the background what has been there for longer than it is kept."""
        keep_for = self._settings.keep_for
        if self.enabled and keep_for is not None:
            self._reaper.add(functools.partial(self._empty_old, keep_for), "the trash")

    async def _empty_old(self, keep_for: datetime.timedelta) -> None:
        await self.empty(keep_for)

    async def sweep(self, older_than: float) -> SweepReport:
        """Finishes what dead processes began here."""
        return await self._folder.sweep(older_than=older_than)


_BOTH_STAY = "that one stays, and so does the one in the trash; delete one of them first"
