"""The run's folder: which steps are committed in it, and how one is removed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer.engine.names import METRICS
from holdfast_manager.steps import CheckpointMetadata, parse_step, step_name
from holdfast_metadata import parse_json
from holdfast_metadata.orbax import ROOT_METADATA_FILE, RootMetadata
from holdfast_storage import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    IfAbsent,
    ObjectExistsError,
    ObjectNotFoundError,
    StorageBackend,
    keys,
)
from holdfast_storage.commit import list_committed, occupant, open_committed, open_plain
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
_ROOT_METADATA = f"metadata/{ROOT_METADATA_FILE}"


class RunDirectory:
    """One run on one backend, whose root is the run's folder. Reading writes nothing."""

    def __init__(self, backend: StorageBackend) -> None:
        self.backend = backend

    @property
    def label(self) -> str:
        """For messages: where the run is."""
        return self.backend.root

    async def list_steps(self) -> list[CheckpointMetadata]:
        """The committed steps in order, holdfast's and Orbax's.

        Stray files, empty folders, attempts and foreign folders are not steps. A step
        whose record cannot be read is left out and reported in the log.
        """
        await self.backend.settle("")
        listing = await list_committed(self.backend, "")
        found = {}
        for entry in listing.committed:
            step = parse_step(entry.name)
            if step is not None:
                found[step] = self.describe(step, entry.record.committed_ns)
        for name, problem in listing.unreadable:
            _log.warning("%s/%s is left alone: %s", self.label, name, problem)
        for name in listing.others:
            step = parse_step(name)
            if step is not None and (await occupant(self.backend, name)).kind == "orbax":
                found[step] = self.describe(step, None, ours=False)
        return await self._without_torn_end([found[step] for step in sorted(found)])

    async def _without_torn_end(self, steps: list[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Leaves out newest steps of which files are missing, as while a copy still runs.

        They are committed and not whole, so none of them is the latest. Older ones are not
        looked into: opening a run costs one look, not one for each step.
        """
        while steps and steps[-1].ours:
            try:
                await open_committed(self.backend, step_name(steps[-1].step))
            except (CheckpointNotFoundError, DamagedCheckpointError) as error:
                _log.warning("%s is left out: %s", steps[-1].path, error)
                steps = steps[:-1]
            else:
                break
        return steps

    def describe(
        self, step: int, committed_ns: int | None, *, ours: bool = True
    ) -> CheckpointMetadata:
        """What is known of a committed step; its metrics are read when asked for."""

        def read() -> Mapping[str, Any] | None:
            return get_loop().run(self._read_metrics(step, ours=ours))

        path = f"{self.label.rstrip('/')}/{step_name(step)}"
        return CheckpointMetadata(step, path, committed_ns, read, ours=ours)

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
