"""The run's folder: which steps are committed in it, and how one is removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from typing import Any

from holdfast_checkpointer.engine.names import METRICS
from holdfast_manager.steps import UNREAD, CheckpointMetadata, Unread, parse_step, step_name
from holdfast_metadata import parse_json
from holdfast_metadata.orbax import ROOT_METADATA_FILE, RootMetadata
from holdfast_storage import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    IfAbsent,
    ObjectExistsError,
    ObjectNotFoundError,
    RecordUnreadableError,
    StorageBackend,
    StorageError,
    keys,
)
from holdfast_storage.commit import (
    list_hints,
    occupant,
    open_committed,
    open_plain,
    read_record,
    read_records,
    remove_hint,
    write_hint,
)
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
_NOT_WHOLE = (CheckpointNotFoundError, DamagedCheckpointError, RecordUnreadableError)
_ROOT_METADATA = f"metadata/{ROOT_METADATA_FILE}"


class RunDirectory:
    """One run on one backend, whose root is the run's folder. Reading writes nothing."""

    def __init__(self, backend: StorageBackend) -> None:
        self.backend = backend
        self._suspects: set[str] = set()  # names whose hint turned out to be wrong

    @property
    def label(self) -> str:
        """For messages: where the run is."""
        return self.backend.root

    async def list_steps(self) -> list[CheckpointMetadata]:
        """The committed steps in order, holdfast's and Orbax's.

        Stray files, empty folders, attempts and foreign folders are not steps. A step
        whose record cannot be read is left out and reported in the log. A step with a hint
        is taken for committed until somebody needs to know (`is_committed`).
        """
        names, hints = await self._names()
        found = {int(name): self.describe(int(name), UNREAD) for name in names & hints}
        listing = await read_records(self.backend, sorted(names - hints))
        for entry in listing.committed:
            found[int(entry.name)] = self.describe(int(entry.name), entry.record.committed_ns)
        for name, problem in listing.unreadable:
            _log.warning("%s/%s is left alone: %s", self.label, name, problem)
        for name in listing.others:
            if (await occupant(self.backend, name)).kind == "orbax":
                found[int(name)] = self.describe(int(name), None, ours=False)
        return await self._without_torn_end([found[step] for step in sorted(found)])

    async def _names(self) -> tuple[set[str], frozenset[str]]:
        """Folders named as steps, and names that have a hint: two listings."""
        listing, hints = await asyncio.gather(
            self.backend.children(""), list_hints(self.backend, "")
        )
        if await self.backend.settle("", listing):
            listing = await self.backend.children("")
        return {name for name in listing.prefixes if parse_step(name) is not None}, hints

    async def is_committed(self, entry: CheckpointMetadata) -> bool:
        """Whether a listed step is committed: one read if only a hint said so."""
        if not entry.hinted:
            return True
        try:
            stored = await read_record(self.backend, step_name(entry.step))
        except RecordUnreadableError as error:
            _log.warning("%s is left out: %s", entry.path, error)
            return False
        if stored.record is None or not stored.committed:
            self._suspects.add(step_name(entry.step))
            return False
        entry.confirm(stored.record.committed_ns)
        return True

    async def _without_torn_end(self, steps: list[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Leaves out newest steps of which files are missing, as while a copy still runs.

        They are committed and not whole, so none of them is the latest. Older ones are not
        looked into: opening a run costs one look, not one for each step.
        """
        while steps and steps[-1].ours:
            try:
                area = await open_committed(self.backend, step_name(steps[-1].step))
            except _NOT_WHOLE as error:
                _log.warning("%s is left out: %s", steps[-1].path, error)
                if isinstance(error, CheckpointNotFoundError):
                    self._suspects.add(step_name(steps[-1].step))
                steps = steps[:-1]
            else:
                steps[-1].confirm(area.record.committed_ns)
                break
        return steps

    def describe(
        self, step: int, committed_ns: int | Unread | None, *, ours: bool = True
    ) -> CheckpointMetadata:
        """What is known of a committed step; the rest is read when asked for."""

        def read_metrics() -> Mapping[str, Any] | None:
            return get_loop().run(self._read_metrics(step, ours=ours))

        def look(entry: CheckpointMetadata) -> None:
            get_loop().run(self.is_committed(entry))

        path = f"{self.label.rstrip('/')}/{step_name(step)}"
        return CheckpointMetadata(step, path, committed_ns, read_metrics, look, ours=ours)

    async def _read_metrics(self, step: int, *, ours: bool) -> Mapping[str, Any] | None:
        name = step_name(step)
        area = await open_committed(self.backend, name) if ours else open_plain(self.backend, name)
        try:
            data = await area.child(METRICS).get(METRICS)
        except ObjectNotFoundError:
            return None
        metrics: Mapping[str, Any] = parse_json(
            data, lenient=True, source=f"{area.label}/metrics/metrics"
        )
        return metrics

    async def remove(self, step: int) -> None:
        """Un-commits a step, then deletes its data and nothing else."""
        name = step_name(step)
        attempt = (await open_committed(self.backend, name)).record.attempt
        strategy = await self.backend.commit_strategy()
        await remove_hint(self.backend, name)
        await strategy.retire(name, expected=str(attempt))

    async def sweep(self) -> None:
        """Removes what dead writers left; live attempts and everything foreign stay."""
        strategy = await self.backend.commit_strategy()
        report = await strategy.sweep("")
        if report.removed:
            _log.info("removed leftovers of dead saves: %s", ", ".join(report.removed))

    async def write_root_metadata(self, custom: Mapping[str, Any]) -> None:
        """Stores the run's own metadata once; what is there already stays."""
        data = RootMetadata(custom_metadata=dict(custom)).to_bytes()
        try:
            await self.backend.put(_ROOT_METADATA, data, condition=IfAbsent())
        except ObjectExistsError:
            _log.debug("%s has root metadata already", self.label)

    async def read_root_metadata(self) -> Mapping[str, Any]:
        """The run's own metadata; empty if none was stored."""
        try:
            data = await self.backend.get(_ROOT_METADATA)
        except ObjectNotFoundError:
            return {}
        source = keys.join(self.label, _ROOT_METADATA)
        return RootMetadata.from_bytes(data, source=source).custom_metadata or {}

    async def note_commit(self, step: int) -> None:
        """Leaves the hint that opening the run later looks for; the step is safe without."""
        await self._as_good_as_it_goes(write_hint(self.backend, step_name(step)))

    async def note_absence(self, step: int) -> None:
        """Removes the hint of a step that turned out not to be committed."""
        await self._as_good_as_it_goes(remove_hint(self.backend, step_name(step)))

    async def _as_good_as_it_goes(self, change: Awaitable[None]) -> None:
        try:
            await change
        except StorageError:
            _log.debug("a hint of %s could not be changed", self.label, exc_info=True)

    async def repair_hints(self) -> None:
        """Adds the hints that are missing and removes those that are wrong.

        A hint is written before the record is read: a step that is un-committed meanwhile
        loses it again, here or there.
        """
        names, hints = await self._names()
        if not self.backend.hints.round_trips:
            return
        wrong = hints & self._suspects
        missing = (await read_records(self.backend, sorted(names - hints))).committed
        for entry in missing:
            await write_hint(self.backend, entry.name)
        for name in sorted(wrong.union(entry.name for entry in missing)):
            if not (await read_record(self.backend, name)).committed:
                await remove_hint(self.backend, name)
        for name in sorted(hints - names):
            await remove_hint(self.backend, name)
