"""Keeping house after a commit: old steps are removed, and what dead writers left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_manager.engine import termination
from holdfast_manager.engine.holds import Holds
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.engine.reaper import Reaper
from holdfast_manager.engine.trash import RunTrash
from holdfast_manager.engine.verdicts import Verdict, judge, judge_aside, protections
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import StepBeingReadError, StepNotFoundError, StepPinnedError
from holdfast_manager.policies.preservation_policies import PreservationPolicy
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_storage import CheckpointNotFoundError, StorageError
from holdfast_storage.commit import SweepReport
from holdfast_storage.lease import settle_leaving

_log = logging.getLogger(__name__)
SILENCE_S = 3600.0
_CONFIRMED_AT_ONCE = 64
# What holds each step, and the further folders of each by the name of the listed one.
_Removing: TypeAlias = tuple[
    Mapping[int, Sequence[str]], Mapping[str, Sequence[CheckpointMetadata]]
]


class Retention:
    """Removes what no rule keeps, in the background, after the newer step is committed.

    A step is un-committed first and gone then; its data is deleted behind that, or kept in the
    trash.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        holds: Holds,
        quarantine: Quarantine,
        lease: WritingLease,
        policy: PreservationPolicy,
        reaper: Reaper,
        trash: RunTrash,
    ) -> None:
        self._run = run
        self._known = known
        self._holds = holds
        self._quarantine = quarantine
        self._lease = lease
        self.policy = policy
        self._reaper = reaper
        self._trash = trash
        self._swept = False
        self._failure: type[Exception] | None = None  # with which the last removal failed
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
        self._reaper.close(termination.patience(self._reaper.patience_s))
        self._holds.removals.ending.close(termination.patience(self._reaper.patience_s))

    def sweep(self) -> None:
        """Looks in the background for what dead writers left, once."""
        if not self._swept:
            self._swept = True
            self._reaper.add(self._sweep_once, f"what dead writers left in {self._run.label}")

    async def explain(self) -> list[Verdict]:
        """Which rule keeps or collects each step; removes nothing and writes nothing."""
        return (await self._decide(writing=False))[0]

    async def require_unpinned(self, step: int) -> None:
        """Refuses to touch a pinned step.

        Raises:
            StepPinnedError: It is pinned; the message says by which names.
        """
        names = (await self._holds.pins.by_step()).get(step)
        if names:
            raise StepPinnedError(step, names, self._run.label)

    async def delete(self, entry: CheckpointMetadata, *, missing_ok: bool) -> bool:
        """Un-commits one step that nothing holds; its data is deleted behind that."""
        try:
            async with self._lease.removing(), self._removing([entry]) as (held, further):
                await self.require_unpinned(entry.step)
                if entry.step in held:
                    raise StepBeingReadError(entry.step, held[entry.step], self._run.label)
                await self._take_out(entry, further)
        except CheckpointNotFoundError:
            if missing_ok:
                return False
            known = [other.step for other in self._known.all()]
            raise StepNotFoundError(entry.step, self._run.label, known) from None
        except BaseException:
            await self._list_again()
            raise
        self._forget_removed(entry.name)
        return True

    async def _keep_house(self, previous: AsyncResponse[None] | None) -> None:
        """Its failure loses no checkpoint."""
        if previous is not None:
            await previous.ended()
        try:
            async with self._lease.writing():
                await self._quarantine.mark_torn()
                await self._collect()
        except Exception as error:  # noqa: BLE001 - the steps are safe; next time it is tried again
            self._tell_failure(error)
        self._trash.empty_by_age()
        self.sweep()

    def _tell_failure(self, error: Exception) -> None:
        """With its traceback where it is new: what a policy fails with, it does at every save."""
        new, self._failure = type(error) is not self._failure, type(error)
        reason = f"{type(error).__name__}: {error}"
        _log.warning("could not remove old steps of %s: %s", self._run.label, reason, exc_info=new)

    async def _sweep_once(self) -> None:
        await self.sweep_now(SILENCE_S)

    async def sweep_now(self, older_than: float) -> SweepReport:
        """Removes what dead writers left, and finishes removals that were cut short.

        Takes no lease, for it touches only what is dead; a writer asks for the one it has. A
        run that another process writes to is left to that.

        Args:
            older_than: Silence in seconds, by the store's clock, from which on a writer that
                is not provably gone counts as dead.
        """
        if self._lease.epoch:
            async with self._lease.writing() as lease:
                await lease.require()
                await settle_leaving(self._run.backend, lease.epoch)
                return await self._sweep_dead(older_than)
        ended = await self._lease.ended_before()
        if ended is None:
            return SweepReport(spared=((self._run.label, "another process writes to the run"),))
        return await self._sweep_dead(older_than)

    async def _sweep_dead(self, older_than: float) -> SweepReport:
        await self._holds.removals.forget_dead()
        await self._quarantine.tidy(self._trash.attempts)
        run = await self._run.sweep(older_than=older_than, pace=self._reaper.pace)
        trash = await self._trash.sweep(older_than)
        await self._run.repair_hints()
        return SweepReport(run.removed + trash.removed, run.spared + trash.spared)

    @asynccontextmanager
    async def _removing(self, entries: list[CheckpointMetadata]) -> AsyncIterator[_Removing]:
        """Announces a removal of steps; gives what holds them, and their further folders."""
        further = await self._run.further_folders(entries)
        names = [one.name for entry in entries for one in (*further.get(entry.name, ()), entry)]
        async with self._holds.removing(names) as held:
            yield held, further

    async def _take_out(
        self, entry: CheckpointMetadata, further: Mapping[str, Sequence[CheckpointMetadata]]
    ) -> None:
        """Un-commits one step: the one place where a step leaves the run.

        What is listed goes last: until then the step is the one that it was.
        """
        for one in (*further.get(entry.name, ()), entry):
            if self._trash.enabled:
                await self._trash.put(one)
            else:
                removal = await self._run.uncommit(one, pace=self._reaper.pace)
                self._reaper.add(removal, one.path)
        self._known.drop(entry)  # again: a listing from before may have brought it back

    async def _decide(
        self, *, writing: bool = True
    ) -> tuple[list[Verdict], list[CheckpointMetadata]]:
        """What stays, and the steps that go."""
        while True:
            checkpoints, aside = self._known.all(), self._known.all_aside()
            holds = await self._holds.by_step(writing=writing)
            protected = protections(checkpoints, holds, await self._fixed(checkpoints))
            # Outside the loop, for a policy may read metrics.
            verdicts = await asyncio.to_thread(judge, checkpoints, self.policy, protected)
            decided = list(zip(checkpoints, verdicts, strict=True))
            surplus = [entry for entry, verdict in decided if not verdict]
            kept = [entry for entry, verdict in decided if verdict]
            # A step that is not there must not be kept in place of one that is, and nothing
            # goes unless what is newest is whole at this moment.
            if not surplus or await self._all_there(kept, writing=writing):
                break
        fixed = await self._fixed([one.entry for one in aside])
        doubtful = judge_aside(aside, verdicts, holds, fixed)
        surplus += [one.entry for one, said in zip(aside, doubtful, strict=True) if not said]
        return sorted([*verdicts, *doubtful], key=lambda verdict: verdict.step), surplus

    async def _fixed(self, checkpoints: list[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """Steps by Orbax, where they would have to go to a trash that cannot take them."""
        orbax = [entry for entry in checkpoints if not entry.ours]
        if orbax and self._trash.enabled and not await self._trash.takes_orbax():
            return orbax
        return []

    async def _all_there(self, kept: list[CheckpointMetadata], *, writing: bool) -> bool:
        """Whether all are committed, as far as can be told; those that are not are forgotten.

        Reads the record of each that was only listed: once, for what was read is remembered.
        """
        gone = await self._run.missing(kept)
        for entry in gone:
            self._known.drop(entry)
        limit = asyncio.Semaphore(_CONFIRMED_AT_ONCE)

        async def confirm(entry: CheckpointMetadata) -> bool:
            async with limit:
                return await self._known.confirm(entry, writing=writing)

        return not gone and all(
            await asyncio.gather(*(confirm(entry) for entry in kept if entry.hinted))
        )

    async def _collect(self) -> None:
        _, surplus = await self._decide()
        if not surplus:
            return
        async with self._removing(surplus) as (held, further):
            for entry in surplus:
                if entry.step not in held:
                    await self._collect_one(entry, further)

    async def _collect_one(
        self, entry: CheckpointMetadata, further: Mapping[str, Sequence[CheckpointMetadata]]
    ) -> None:
        marked = self._known.aside(entry.step) is not None
        if marked and not await self._quarantine.may_replace(entry.step):
            await self._list_again()  # it was repaired: the policy decides, next time
            return
        self._known.drop(entry)
        if not await self._known.confirm(entry):
            return
        try:
            await self._take_out(entry, further)
            if marked:
                self._forget_removed(entry.name)
        except CheckpointNotFoundError:
            _log.debug("%s was removed meanwhile", entry.path)
            await self._list_again()
        except StorageError:
            _log.warning("could not remove %s; it stays for now", entry.path, exc_info=True)
            await self._list_again()

    def _forget_removed(self, name: str) -> None:
        if not self._trash.enabled:  # from there it comes back as it was
            self.forget_mark(name)

    def forget_mark(self, name: str, *, unless: str | None = None) -> None:
        """Removes, behind everything, what is said of a step that was saved anew or removed."""
        self._reaper.add(
            lambda: self._quarantine.forget(name, unless=unless), f"the mark of {name}"
        )

    async def _list_again(self) -> None:
        """A step that was not removed is listed again, as what it is."""
        try:
            await self._known.refresh()
        except StorageError:
            _log.warning("%s could not be listed", self._run.label, exc_info=True)
