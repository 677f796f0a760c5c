"""Keeping house after a commit: old steps are removed, and what dead writers left."""

from __future__ import annotations

import asyncio
import logging

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.policies.preservation_policies import PreservationPolicy
from holdfast_manager.run_directory import RunDirectory

_log = logging.getLogger(__name__)


class Retention:
    """Removes what no policy keeps, in the background."""

    def __init__(self, run: RunDirectory, known: KnownSteps, policy: PreservationPolicy) -> None:
        self._run = run
        self._known = known
        self._policy = policy
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
        """Waits for what is under way. A failure was logged; no step is lost by it."""
        running = self._running
        if running is not None:
            running.exception()

    async def _keep_house(self, previous: AsyncResponse[None] | None) -> None:
        """Removes old steps and, once, dead attempts; its failure loses no checkpoint."""
        if previous is not None:
            await previous
        try:
            await self._collect()
            if not self._swept:
                self._swept = True
                await self._run.sweep()
                await self._run.repair_hints()
        except Exception:  # noqa: BLE001 - the steps are safe; what is left is collected next time
            _log.warning("could not remove old steps of %s", self._run.label, exc_info=True)

    async def _collect(self) -> None:
        while True:
            checkpoints = self._known.all()
            # Outside the loop, for a policy may read metrics.
            keep = await asyncio.to_thread(self._policy.should_preserve, checkpoints)
            decided = list(zip(checkpoints, keep, strict=True))[:-1]
            surplus = [entry for entry, kept in decided if not kept and entry.ours]
            if not surplus:
                return
            # A step that is not there must not be kept in place of one that is.
            if all([await self._known.confirm(entry) for entry, kept in decided if kept]):
                break
        for entry in surplus:
            self._known.drop(entry)
            if await self._known.confirm(entry):
                await self._run.remove(entry.step)
