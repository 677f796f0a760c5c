"""What a commit strategy must show on its backend, wherever an actor is stopped."""
# ruff: noqa: D102 - the name of a test is the sentence that it shows

from __future__ import annotations

import asyncio
import itertools

import pytest

from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.testing.commit_rules import CommitRules
from holdfast_storage.testing.faulty import MUTATIONS, Fault, FaultyBackend
from holdfast_storage.testing.history import History, until_paused

SCENARIOS = [("save", False), ("overwrite", True), ("retire", True), ("sweep", True)]
OTHERS = ["save", "overwrite", "retire", "sweep", "abort"]


class CommitTests(CommitRules):
    """The whole of it. Subclass it and provide the fixture `backend`: an empty store."""

    _runs = itertools.count()

    async def _fresh(self, backend: StorageBackend, *, committed: bool, dead: bool) -> History:
        """A run folder of its own, in which something unrelated lies."""
        history = History(f"run-{next(self._runs)}/step_7")
        await backend.put(keys.join(keys.parent(history.final), "unrelated"), b"")
        if committed:
            await history.save(backend, "old")
        if dead:
            await history.die(backend, "dead")
        return history

    @pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE])
    @pytest.mark.parametrize(("what", "committed"), SCENARIOS)
    async def test_a_fault_at_any_call_loses_nothing_and_leaves_nothing(
        self, backend: StorageBackend, what: str, committed: bool, fault: Fault
    ) -> None:
        for number in itertools.count(1):
            history = await self._fresh(backend, committed=committed, dead=what == "sweep")
            view = FaultyBackend(backend, {number: fault})
            await history.act(what, view, "A")
            if len(view.calls) < number:
                return
            await history.judge(backend)
            assert await history.leftovers(backend) == [], view.calls
            await history.overwrite(backend, "later")
            assert await history.committed(backend) == "later", view.calls

    @pytest.mark.parametrize("other", OTHERS)
    @pytest.mark.parametrize(("what", "committed"), SCENARIOS)
    async def test_another_actor_at_any_pause_meets_one_whole_attempt_or_none(
        self, backend: StorageBackend, what: str, committed: bool, other: str
    ) -> None:
        for number in itertools.count(1):
            faults = {number: Fault.PAUSE}
            if await self._race(backend, what, committed, other, faults) < number:
                return

    async def _race(
        self,
        backend: StorageBackend,
        what: str,
        committed: bool,
        other: str,
        faults: dict[int, Fault],
    ) -> int:
        """A pauses, B acts, A goes on; says how many calls A made."""
        history = await self._fresh(backend, committed=committed, dead=what == "sweep")
        view = FaultyBackend(backend, faults)
        actor = asyncio.ensure_future(history.act(what, view, "A"))
        if await until_paused(actor, view):
            await history.act(other, backend, "B")
            view.resume.set()
        await actor
        if view.crashed:
            history.unknown.add("A")
        await history.judge(backend)
        await history.overwrite(backend, "later")
        assert await history.committed(backend) == "later", (view.calls, faults)
        return len(view.calls)

    @pytest.mark.parametrize("other", ["overwrite", "retire"])
    async def test_a_reader_paused_anywhere_sees_one_attempt_or_a_deleted_one(
        self, backend: StorageBackend, other: str
    ) -> None:
        for number in itertools.count(1):
            history = await self._fresh(backend, committed=True, dead=False)
            view = FaultyBackend(backend, {number: Fault.PAUSE}, reads=True)
            reader = asyncio.ensure_future(history.committed(view))
            reached = asyncio.ensure_future(view.reached.wait())
            await asyncio.wait([reader, reached], return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
            if view.reached.is_set():
                await history.act(other, backend, "B")
                view.resume.set()
            assert await reader in ("old", "B", None)
            if len(view.calls) < number:
                return


class ThoroughCommitTests(CommitTests):
    """Also stops two actors, or one of them twice: thousands of runs, for stores in memory."""

    @pytest.mark.parametrize("other", OTHERS)
    @pytest.mark.parametrize(("what", "committed"), SCENARIOS)
    async def test_an_actor_that_was_paused_and_dies_later_on_tears_nothing(
        self, backend: StorageBackend, what: str, committed: bool, other: str
    ) -> None:
        for number in itertools.count(1):
            for crash in itertools.count(number + 1):
                faults = {number: Fault.PAUSE, crash: Fault.CRASH}
                calls = await self._race(backend, what, committed, other, faults)
                if calls < crash:
                    break
            if calls < number:
                return

    @pytest.mark.parametrize("other", ["overwrite", "retire", "sweep", "abort"])
    @pytest.mark.parametrize(("what", "committed"), SCENARIOS)
    async def test_a_reply_lost_while_another_actor_is_half_way_tears_nothing(
        self, backend: StorageBackend, what: str, committed: bool, other: str
    ) -> None:
        for number in await self._mutations(backend, what, committed):
            for stop in itertools.count(0):
                faults = {number: Fault.LOSE_REPLY, number + 1: Fault.PAUSE}
                _, stopped = await self._interleave(backend, what, committed, other, faults, stop)
                if stop and not stopped:
                    break

    @pytest.mark.parametrize("other", ["overwrite", "retire", "sweep", "abort"])
    @pytest.mark.parametrize(("what", "committed"), SCENARIOS)
    async def test_two_actors_that_stop_half_way_tear_nothing(
        self, backend: StorageBackend, what: str, committed: bool, other: str
    ) -> None:
        for number in itertools.count(1):
            for stop in itertools.count(1):
                faults = {number: Fault.PAUSE}
                one, two = await self._interleave(backend, what, committed, other, faults, stop)
                if not one:
                    return
                if not two:
                    break

    async def _mutations(self, backend: StorageBackend, what: str, committed: bool) -> list[int]:
        """The numbers of an actor's mutating calls, reads counted."""
        history = await self._fresh(backend, committed=committed, dead=what == "sweep")
        view = FaultyBackend(backend, reads=True)
        await history.act(what, view, "A")
        return [call.number for call in view.calls if call.operation in MUTATIONS]

    async def _interleave(
        self,
        backend: StorageBackend,
        what: str,
        committed: bool,
        other: str,
        faults: dict[int, Fault],
        stop: int,
    ) -> tuple[bool, bool]:
        """A meets its faults, B stops half way, A ends, B ends; whether each of them stopped."""
        history = await self._fresh(backend, committed=committed, dead=what == "sweep")
        first = FaultyBackend(backend, faults, reads=True)
        second = FaultyBackend(backend, {stop: Fault.PAUSE})
        one = asyncio.ensure_future(history.act(what, first, "A"))
        paused = await until_paused(one, first)
        two = asyncio.ensure_future(history.act(other, second, "B"))
        stopped = await until_paused(two, second)
        first.resume.set()
        await one
        second.resume.set()
        await two
        await history.judge(backend)
        await history.overwrite(backend, "later")
        assert await history.committed(backend) == "later", (first.calls, second.calls)
        return paused, stopped
