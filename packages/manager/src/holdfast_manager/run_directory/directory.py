"""One run's folder as the manager sees it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.engine.unmarked import holds_unmarked
from holdfast_manager.quarantine import Aside, QuarantinedStep, QuarantineMarks
from holdfast_manager.quarantine.looking import identity_of
from holdfast_manager.run_directory import root_metadata
from holdfast_manager.run_directory.hints import HintKeeper
from holdfast_manager.run_directory.listing import StepListing
from holdfast_manager.step_names import NameFormat, check_folder, standard_name_format
from holdfast_manager.steps import CheckpointMetadata, Unread
from holdfast_storage import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    RecordUnreadableError,
    StorageBackend,
    UnsupportedOperationError,
)
from holdfast_storage.commit import (
    CommitStrategy,
    Pace,
    Removal,
    SweepReport,
    occupant,
    open_committed,
    read_record,
)

_log = logging.getLogger(__name__)
_NOT_WHOLE = (CheckpointNotFoundError, DamagedCheckpointError, RecordUnreadableError)


@dataclass(frozen=True)
class ListedSteps:
    """What a look into a run's folder shows.

    Attributes:
        steps: The committed steps, in order.
        aside: Steps that are there and not good, in no order.
    """

    steps: list[CheckpointMetadata]
    aside: list[Aside]


class RunDirectory:
    """One run on one backend, whose root is the run's folder. Reading writes nothing.

    Args:
        backend: The storage of the run.
        name_format: How the folders of steps are called.
    """

    def __init__(self, backend: StorageBackend, name_format: NameFormat | None = None) -> None:
        self.backend = backend
        self._names_of = name_format or standard_name_format()
        self._listing = StepListing(backend, self._names_of)
        self._hints = HintKeeper(backend, self._listing.names)
        self.marks = QuarantineMarks(backend)

    @property
    def label(self) -> str:
        """For messages: where the run is."""
        return self.backend.root

    @property
    def name_format(self) -> NameFormat:
        """How the folders of steps are called."""
        return self._names_of

    def build_name(self, step: int) -> str:
        """The folder of a step that is saved now.

        Raises:
            ValueError: The name format made a name that no folder can have.
        """
        return check_folder(self._names_of.build_name(step))

    def describe(
        self,
        step: int,
        committed_ns: int | Unread | None,
        name: str,
        *,
        ours: bool = True,
        unmarked: bool = False,
    ) -> CheckpointMetadata:
        """What is known of a committed step; the rest is read when asked for."""
        return self._listing.describe(step, committed_ns, name, ours=ours, unmarked=unmarked)

    async def list_steps(self) -> list[CheckpointMetadata]:
        """The committed steps in order, holdfast's and Orbax's.

        Stray files, empty folders, attempts and foreign folders are not steps. A step
        whose record cannot be read is left out and reported in the log. A step with a hint
        is taken for committed until somebody needs to know (`is_committed`).
        """
        return (await self.look()).steps

    async def look(self) -> ListedSteps:
        """The steps as `list_steps` gives them, and those that are there and not good."""
        found = await self._listing.steps()
        good, known = await self.marks.split(found.committed, marks=found.marks)
        whole, torn = await self._without_torn_end(good)
        steps = self._listing.one_for_each_step(whole)
        unreadable = await self.marks.with_marks(found.unreadable, marks=found.marks)
        numbers = {entry.step for entry in steps}
        aside = [one for one in (*unreadable, *known, *torn) if one.entry.step not in numbers]
        return ListedSteps(steps, aside)

    async def is_committed(self, entry: CheckpointMetadata) -> bool:
        """Whether a listed step is committed: one read if only a hint said so."""
        if not entry.hinted:
            return True
        try:
            stored = await read_record(self.backend, entry.name)
        except RecordUnreadableError as error:
            _log.warning("%s is left out: %s", entry.path, error)
            return False
        if stored.record is None or not stored.committed:
            self._hints.suspects.add(entry.name)
            return False
        entry.confirm(stored.record.committed_ns)
        return True

    async def is_there(self, entry: CheckpointMetadata) -> bool:
        """Whether a step is committed at this moment, by whatever wrote it."""
        if entry.unmarked and await holds_unmarked(self.backend, entry.name):
            return True
        return (await occupant(self.backend, entry.name)).kind in ("ours", "orbax")

    async def missing(self, entries: Sequence[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Those of listed steps that somebody removed without telling, or that are torn.

        The newest is looked into; of the others only the folder is looked for. That is what a
        person or another program removes; what holdfast un-commits is removed by the one
        writer of the run.
        """
        names, _ = await self._listing.names()
        gone = [entry for entry in entries if entry.name not in names]
        if not gone and entries and not await self.is_whole(entries[-1]):
            gone.append(entries[-1])
        return gone

    async def further_folders(
        self, entries: Sequence[CheckpointMetadata]
    ) -> dict[str, list[CheckpointMetadata]]:
        """Checkpoints of the same steps that are not listed, by the name of the one that is.

        As of a run that went on under other names: without the listed one they would be seen.
        """
        return await self._listing.further(entries)

    async def _without_torn_end(
        self, steps: list[CheckpointMetadata]
    ) -> tuple[list[CheckpointMetadata], list[Aside]]:
        """Leaves out newest steps of which files are missing, as while a copy still runs.

        They are committed and not whole, so none of them is the latest. Older ones are not
        looked into: opening a run costs one look, not one for each step.
        """
        torn = []
        while steps and steps[-1].ours:
            entry = steps[-1]
            try:
                area = await open_committed(self.backend, entry.name)
            except _NOT_WHOLE as error:
                _log.warning("%s is left out: %s", entry.path, error)
                steps = steps[:-1]
                if isinstance(error, CheckpointNotFoundError):
                    self._hints.suspects.add(entry.name)
                else:
                    torn.append(await self._torn(entry, error))
            else:
                entry.confirm(area.record.committed_ns)
                break
        return steps, torn

    async def _torn(self, entry: CheckpointMetadata, error: Exception) -> Aside:
        told = QuarantinedStep.seen(entry, error)
        return Aside(entry, told, await identity_of(self.backend, entry))

    async def attempt_of(self, entry: CheckpointMetadata) -> str | None:
        """The attempt that is committed as a step; None for a step that Orbax wrote.

        Raises:
            CheckpointNotFoundError: It is not committed any more.
            UnsupportedOperationError: Orbax wrote it before it marked its checkpoints.
        """
        if entry.unmarked:
            raise UnsupportedOperationError(
                "Orbax wrote this step before it marked its checkpoints; holdfast reads it and "
                "does not remove it. Nothing was touched",
                key=entry.name,
                root=self.label,
            )
        found = await occupant(self.backend, entry.name)
        if found.kind == "orbax" or found.stored.attempt is not None:
            return found.stored.attempt
        raise CheckpointNotFoundError(
            "the step is not committed any more", key=entry.name, root=self.label
        )

    async def forget_hint(self, entry: CheckpointMetadata) -> None:
        """Removes the hint of a step that is about to be un-committed."""
        await self._hints.take(entry.name)

    async def uncommit(self, entry: CheckpointMetadata, *, pace: Pace | None = None) -> Removal:
        """Un-commits a step; what is returned deletes its data and nothing else.

        Raises:
            CheckpointNotFoundError: It is not committed any more.
        """
        attempt = await self.attempt_of(entry)
        strategy = await self._strategy(pace)
        await self.forget_hint(entry)
        if attempt is None:
            return await strategy.uncommit_orbax(entry.name)
        return await strategy.uncommit(entry.name, expected=attempt)

    async def sweep(self, *, older_than: float, pace: Pace | None = None) -> SweepReport:
        """Removes what dead writers left; live attempts and everything foreign stay."""
        strategy = await self._strategy(pace)
        report = await strategy.sweep("", older_than=older_than)
        if report.removed:
            _log.info("removed leftovers of dead saves: %s", ", ".join(report.removed))
        return report

    async def _strategy(self, pace: Pace | None) -> CommitStrategy:
        strategy = await self.backend.commit_strategy()
        if pace is not None:
            strategy.pace = pace
        return strategy

    async def is_whole(self, entry: CheckpointMetadata) -> bool:
        """Whether a step is committed at this moment and has all its files: one look."""
        if not entry.ours:
            return await self.is_there(entry)
        try:
            await open_committed(self.backend, entry.name)
        except _NOT_WHOLE as error:
            _log.warning("%s is left out: %s", entry.path, error)
            return False
        return True

    async def write_root_metadata(self, custom: Mapping[str, Any]) -> None:
        """Stores the run's own metadata once; what is there already stays."""
        await root_metadata.write_root_metadata(self.backend, custom)

    async def read_root_metadata(self) -> Mapping[str, Any]:
        """The run's own metadata; empty if none was stored."""
        return await root_metadata.read_root_metadata(self.backend)

    async def note_commit(self, entry: CheckpointMetadata) -> None:
        """Leaves the hint that opening the run later looks for; the step is safe without."""
        await self._hints.add(entry.name)

    async def note_absence(self, entry: CheckpointMetadata) -> None:
        """Removes the hint of a step that turned out not to be committed."""
        await self._hints.remove(entry.name)

    async def repair_hints(self) -> None:
        """Adds the hints that are missing and removes those that are wrong."""
        await self._hints.repair()
