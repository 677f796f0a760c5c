"""The run's folder: which steps are committed in it, and how one is removed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from holdfast_checkpointer.engine.names import METRICS
from holdfast_manager.step_names import NameFormat, check_folder, standard_name_format, step_in
from holdfast_manager.steps import UNREAD, CheckpointMetadata, StepReader, Unread
from holdfast_metadata import parse_json
from holdfast_metadata.orbax import (
    ITEM_METADATA_FILE,
    ROOT_METADATA_FILE,
    STEP_METADATA_FILE,
    RootMetadata,
    StepMetadata,
)
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
    Removal,
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
_AT_ONCE = 64
_ROOT_METADATA = f"metadata/{ROOT_METADATA_FILE}"


class RunDirectory:
    """One run on one backend, whose root is the run's folder. Reading writes nothing.

    Args:
        backend: The storage of the run.
        name_format: How the folders of steps are called.
    """

    def __init__(self, backend: StorageBackend, name_format: NameFormat | None = None) -> None:
        self.backend = backend
        self._names_of = name_format or standard_name_format()
        self._suspects: set[str] = set()  # names whose hint turned out to be wrong
        self._reader = StepReader(self._read_time, self._read_metrics, self._read_size)

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

    async def list_steps(self) -> list[CheckpointMetadata]:
        """The committed steps in order, holdfast's and Orbax's.

        Stray files, empty folders, attempts and foreign folders are not steps. A step
        whose record cannot be read is left out and reported in the log. A step with a hint
        is taken for committed until somebody needs to know (`is_committed`).
        """
        steps, hints = await self._names()
        found = {name: self.describe(steps[name], UNREAD, name) for name in steps.keys() & hints}
        listing = await read_records(self.backend, sorted(steps.keys() - hints))
        for entry in listing.committed:
            committed_ns = entry.record.committed_ns
            found[entry.name] = self.describe(steps[entry.name], committed_ns, entry.name)
        for name, problem in listing.unreadable:
            _log.warning("%s/%s is left alone: %s", self.label, name, problem)
        for name in await self._written_by_orbax(listing.others):
            found[name] = self.describe(steps[name], UNREAD, name, ours=False)
        return await self._without_torn_end(self._one_for_each_step(found))

    async def _names(self) -> tuple[dict[str, int], frozenset[str]]:
        """Folders named as steps, and names that have a hint: two listings."""
        listing, hints = await asyncio.gather(
            self.backend.children(""), list_hints(self.backend, "")
        )
        if await self.backend.settle("", listing):
            listing = await self.backend.children("")
        steps = {name: step_in(self._names_of, name) for name in listing.prefixes}
        return {name: step for name, step in steps.items() if step is not None}, hints

    async def _written_by_orbax(self, names: Sequence[str]) -> list[str]:
        limit = asyncio.Semaphore(_AT_ONCE)

        async def look(name: str) -> bool:
            async with limit:
                return (await occupant(self.backend, name)).kind == "orbax"

        answers = await asyncio.gather(*(look(name) for name in names))
        return [name for name, orbax in zip(names, answers, strict=True) if orbax]

    def _one_for_each_step(self, found: dict[str, CheckpointMetadata]) -> list[CheckpointMetadata]:
        """In order of the steps; of several folders for one, that of the written format."""
        chosen: dict[int, CheckpointMetadata] = {}
        for name in sorted(found):
            entry = found[name]
            other = chosen.setdefault(entry.step, entry)
            if other is entry:
                continue
            if name == self._names_of.build_name(entry.step):
                chosen[entry.step], other = entry, entry
            _log.warning("%s has two folders for step %s; taking %s", self.label, entry.step, other)
        return [chosen[step] for step in sorted(chosen)]

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
            self._suspects.add(entry.name)
            return False
        entry.confirm(stored.record.committed_ns)
        return True

    async def is_there(self, entry: CheckpointMetadata) -> bool:
        """Whether a step is committed at this moment, by whatever wrote it."""
        return (await occupant(self.backend, entry.name)).kind in ("ours", "orbax")

    async def _without_torn_end(self, steps: list[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Leaves out newest steps of which files are missing, as while a copy still runs.

        They are committed and not whole, so none of them is the latest. Older ones are not
        looked into: opening a run costs one look, not one for each step.
        """
        while steps and steps[-1].ours:
            try:
                area = await open_committed(self.backend, steps[-1].name)
            except _NOT_WHOLE as error:
                _log.warning("%s is left out: %s", steps[-1].path, error)
                if isinstance(error, CheckpointNotFoundError):
                    self._suspects.add(steps[-1].name)
                steps = steps[:-1]
            else:
                steps[-1].confirm(area.record.committed_ns)
                break
        return steps

    def describe(
        self, step: int, committed_ns: int | Unread | None, name: str, *, ours: bool = True
    ) -> CheckpointMetadata:
        """What is known of a committed step; the rest is read when asked for."""
        path = f"{self.label.rstrip('/')}/{name}"
        return CheckpointMetadata(step, path, name, committed_ns, self._reader, ours=ours)

    def _read_time(self, entry: CheckpointMetadata) -> int | None:
        return get_loop().run(self._time_of(entry))

    async def _time_of(self, entry: CheckpointMetadata) -> int | None:
        if entry.ours:
            stored = await read_record(self.backend, entry.name)
            return stored.record.committed_ns if stored.record and stored.committed else None
        for name in (STEP_METADATA_FILE, ITEM_METADATA_FILE):
            try:
                info, data = await self.backend.read(keys.join(entry.name, name))
            except ObjectNotFoundError:
                continue
            said = None
            if name == STEP_METADATA_FILE:
                step = StepMetadata.from_bytes(data, source=f"{entry.path}/{name}")
                said = step.commit_timestamp_nsecs
            return said or int(info.modified * 1e9)
        return None

    def _read_metrics(self, entry: CheckpointMetadata) -> Mapping[str, Any] | None:
        return get_loop().run(self._metrics_of(entry))

    async def _metrics_of(self, entry: CheckpointMetadata) -> Mapping[str, Any] | None:
        area = (
            await open_committed(self.backend, entry.name, check_whole=False)
            if entry.ours
            else open_plain(self.backend, entry.name)
        )
        try:
            data = await area.child(METRICS).get(METRICS)
        except ObjectNotFoundError:
            return None
        metrics: Mapping[str, Any] = parse_json(
            data, lenient=True, source=f"{area.label}/metrics/metrics"
        )
        return metrics

    def _read_size(self, entry: CheckpointMetadata) -> int | None:
        return get_loop().run(self._size_of(entry))

    async def _size_of(self, entry: CheckpointMetadata) -> int | None:
        try:
            if not entry.ours:
                return sum([info.size async for info in self.backend.walk(entry.name)])
            area = await open_committed(self.backend, entry.name, check_whole=False)
        except StorageError as error:
            _log.warning("the size of %s cannot be told: %s", entry.path, error)
            return None
        return sum(file.size for file in area.manifest.entries)

    async def uncommit(self, entry: CheckpointMetadata) -> Removal:
        """Un-commits a step; what is returned deletes its data and nothing else.

        Raises:
            CheckpointNotFoundError: It is not committed any more.
        """
        stored = await read_record(self.backend, entry.name)
        if stored.attempt is None:
            raise CheckpointNotFoundError(
                "the step is not committed any more", key=entry.name, root=self.label
            )
        strategy = await self.backend.commit_strategy()
        await remove_hint(self.backend, entry.name)
        return await strategy.uncommit(entry.name, expected=stored.attempt)

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

    async def note_commit(self, entry: CheckpointMetadata) -> None:
        """Leaves the hint that opening the run later looks for; the step is safe without."""
        await self._as_good_as_it_goes(write_hint(self.backend, entry.name))

    async def note_absence(self, entry: CheckpointMetadata) -> None:
        """Removes the hint of a step that turned out not to be committed."""
        await self._as_good_as_it_goes(remove_hint(self.backend, entry.name))

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
        steps, hints = await self._names()
        names = steps.keys()
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
