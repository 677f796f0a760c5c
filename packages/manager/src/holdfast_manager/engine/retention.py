"""Keeping house after a commit: old steps are removed, and what dead writers left."""

from __future__ import annotations

import asyncio
import logging

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.pins import Pins
from holdfast_manager.engine.reaper import Reaper
from holdfast_manager.engine.verdicts import Verdict, judge, protections
from holdfast_manager.errors import StepPinnedError
from holdfast_manager.policies.preservation_policies import PreservationPolicy
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_storage import StorageError

_log = logging.getLogger(__name__)
CLOSING_PATIENCE_S = 30.0


class Retention:
    """Removes what no rule keeps, in the background, after the newer step is committed.

    A step is un-committed first and gone then; its data is deleted behind that.
    """

    def __init__(
        self, run: RunDirectory, known: KnownSteps, pins: Pins, policy: PreservationPolicy
    ) -> None:
        self._run = run
        self._known = known
        self._pins = pins
        self.policy = policy
        self._reaper = Reaper()
        self._swept = False
        self._running: AsyncResponse[None] | None = None

    @property
    def swept(self) -> bool:
        """Whether what dead writers left has been looked for."""
        return self._swept

    def start(self) -> None:
        """Keeps house in the background, once what is under way has ended."""
        self._running = AsyncResponse(
            self._keep_house(self._running), what=f"removing old steps of {self._run.label}"
        )

    def wait(self) -> None:
        """Waits until surplus steps are un-committed. A failure was logged; nothing is lost."""
        running = self._running
        if running is not None:
            running.exception()

    def close(self) -> None:
        """Waits as `wait` does, and a while for the deletion of data."""
        self.wait()
        self._reaper.close(CLOSING_PATIENCE_S)

    def sweep(self) -> None:
        """Looks in the background for what dead writers left, once."""
        if not self._swept:
            self._swept = True
            self._reaper.add(self._sweep, f"what dead writers left in {self._run.label}")

    async def explain(self) -> list[Verdict]:
        """Which rule keeps or collects each step; removes nothing and writes nothing."""
        return (await self._decide(writing=False))[0]

    async def require_unpinned(self, step: int) -> None:
        """Refuses to touch a pinned step.

        Raises:
            StepPinnedError: It is pinned; the message says by which names.
        """
        names = (await self._pins.by_step()).get(step)
        if names:
            raise StepPinnedError(step, names, self._run.label)

    async def delete(self, entry: CheckpointMetadata) -> bool:
        """Un-commits one step that is not pinned; its data is deleted behind that."""
        try:
            async with self._pins.removing([entry.name]) as pinned:
                if entry.step in pinned:
                    raise StepPinnedError(entry.step, pinned[entry.step], self._run.label)
                self._reaper.add(await self._run.uncommit(entry), entry.path)
        except BaseException:
            if await self._run.is_there(entry):
                self._known.add(entry)
            raise
        return True

    async def _keep_house(self, previous: AsyncResponse[None] | None) -> None:
        """Its failure loses no checkpoint."""
        if previous is not None:
            await previous
        try:
            await self._collect()
        except Exception:  # noqa: BLE001 - the steps are safe; what is left is collected next time
            _log.warning("could not remove old steps of %s", self._run.label, exc_info=True)
        self.sweep()

    async def _sweep(self) -> None:
        await self._pins.forget_dead_removal()
        await self._run.sweep()
        await self._run.repair_hints()

    async def _decide(
        self, *, writing: bool = True
    ) -> tuple[list[Verdict], list[CheckpointMetadata]]:
        """What stays, and the steps that go."""
        while True:
            checkpoints = self._known.all()
            protected = protections(checkpoints, await self._pins.by_step())
            # Outside the loop, for a policy may read metrics.
            verdicts = await asyncio.to_thread(judge, checkpoints, self.policy, protected)
            decided = list(zip(checkpoints, verdicts, strict=True))
            surplus = [entry for entry, verdict in decided if not verdict]
            kept = [entry for entry, verdict in decided if verdict]
            # A step that is not there must not be kept in place of one that is.
            if not surplus or await self._all_there(kept, writing=writing):
                return verdicts, surplus

    async def _all_there(self, kept: list[CheckpointMetadata], *, writing: bool) -> bool:
        return all([await self._known.confirm(entry, writing=writing) for entry in kept])

    async def _collect(self) -> None:
        _, surplus = await self._decide()
        if not surplus:
            return
        async with self._pins.removing([entry.name for entry in surplus]) as pinned:
            for entry in surplus:
                if entry.step not in pinned:
                    await self._collect_one(entry)

    async def _collect_one(self, entry: CheckpointMetadata) -> None:
        self._known.drop(entry)
        if not await self._known.confirm(entry):
            return
        try:
            self._reaper.add(await self._run.uncommit(entry), entry.path)
        except StorageError:
            _log.warning("could not remove %s; it stays for now", entry.path, exc_info=True)
            if await self._run.is_there(entry):
                self._known.add(entry)
