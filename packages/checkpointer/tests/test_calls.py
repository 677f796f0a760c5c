"""Calls that all processes make: whatever fails on one, fails on all, and the next is clean."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.errors import (
    DisagreementError,
    ProcessStalledError,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.memory_service import MemoryService

_jobs = itertools.count()
PHASES = ["before it knows the place", "before the vote", "the write"]


class Job:
    """Processes that save to places, and fail where they are told to."""

    def __init__(self, count, *, primary=0, deadline_s=20.0):
        self.service, self.count, prefix = MemoryService(), count, f"job {next(_jobs)}"
        self.coordinators = [
            Coordinator(
                self.service,
                me=me,
                processes=range(count),
                primary=primary,
                deadline_s=deadline_s,
                prefix=prefix,
            )
            for me in range(count)
        ]

    async def save(self, place, failures=None, *, late=None):
        """What each process returned or raised, where `failures` says which fails in what."""
        failures, late = failures or {}, late or {}
        return await asyncio.gather(
            *(
                self._one(me, place, failures.get(me), late.get(me, 0.0))
                for me in range(self.count)
            ),
            return_exceptions=True,
        )

    async def _one(self, me, place, failing, late_s):
        await asyncio.sleep(late_s)
        coordinator = self.coordinators[me]
        call = coordinator.call()

        def maybe(now):
            if failing == now:
                raise OSError(f"process {me} fails in {now}")

        try:
            maybe(PHASES[0])
        except OSError as error:
            await call.void(error, "the validation")
            raise
        async with coordinator.operation(f"save {place}", call=call) as operation:
            operation.enter(PHASES[1])
            maybe(PHASES[1])
            ballots = await operation.gather("trees", b"%d" % me)
            await operation.broadcast("verdict", None if ballots is None else b"same")
            operation.enter(PHASES[2])
            maybe(PHASES[2])
            await operation.barrier("written")
            return await operation.conclude(b"saved" if operation.is_primary else None)


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("phase", PHASES)
async def test_a_failure_reaches_all_at_once_leaves_no_key_and_the_next_save_succeeds(
    culprit, phase
):
    job = Job(3)
    async with asyncio.timeout(10):
        found = await job.save("x", {culprit: phase})
    for me, said in enumerate(found):
        if me == culprit:
            assert isinstance(said, OSError)
            continue
        assert isinstance(said, RemoteProcessError)
        assert said.process == culprit
        assert f"process {culprit} fails in {phase}" in str(said)
        assert isinstance(said, OSError)  # as the original is
    assert job.service.keys == []
    async with asyncio.timeout(10):
        assert await job.save("x") == [b"saved"] * 3
    assert job.service.keys == []


async def test_all_fail_alike_and_none_waits():
    job = Job(3)
    async with asyncio.timeout(10):
        found = await job.save("x", dict.fromkeys(range(3), PHASES[0]))
        assert all(type(said) is OSError for said in found)
        assert job.service.keys == []
        assert await job.save("x") == [b"saved"] * 3


async def test_one_that_comes_after_the_deadline_is_told_at_once_and_the_next_save_succeeds():
    job = Job(3, deadline_s=0.3)
    async with asyncio.timeout(20):
        found = await job.save("x", late={2: 1.5})
        assert isinstance(found[0], ProcessStalledError)
        assert all(isinstance(said, RemoteProcessError | ProcessStalledError) for said in found[1:])
        assert await job.save("x") == [b"saved"] * 3
        assert job.service.keys == []


async def test_one_that_comes_late_and_fails_by_itself_puts_nobody_out_of_step():
    job = Job(2, deadline_s=0.3)
    async with asyncio.timeout(20):
        await job.save("x", {1: PHASES[0]}, late={1: 1.5})
        assert await job.save("x") == [b"saved"] * 2
        assert job.service.keys == []


async def test_processes_that_save_to_different_places_are_told_of_both_and_do_not_wait_for_long():
    job = Job(3, deadline_s=300)
    async with asyncio.timeout(60):
        found = await asyncio.gather(
            *(job._one(me, "y" if me == 1 else "x", None, 0.0) for me in range(3)),
            return_exceptions=True,
        )
    for said in found:
        assert isinstance(said, DisagreementError)
        assert "process 0 is in save x, process 1 in save y" in str(said)
    assert job.service.keys == []
    assert await job.save("x") == await job.save("y") == [b"saved"] * 3


async def test_who_waits_elsewhere_is_said_when_the_deadline_passes():
    job = Job(2, deadline_s=0.4)
    coordinators = job.coordinators

    async def one(me):
        async with coordinators[me].operation(f"turn {me}") as operation:
            await operation.barrier("the call")

    async with asyncio.timeout(20):
        found = await asyncio.gather(one(0), one(1), return_exceptions=True)
    assert all(isinstance(said, ProcessStalledError) for said in found)
    assert "process 1 waits in turn 1" in str(found[0])
    assert "process 0 waits in turn 0" in str(found[1])
    assert await job.save("x") == [b"saved"] * 2
    assert not [key for key in job.service.keys if key.count("/") == 2]  # nothing on the board


async def test_several_saves_at_once_one_of_which_is_void():
    job = Job(2)
    async with asyncio.timeout(10):
        a, b, c = await asyncio.gather(job.save("a"), job.save("b", {1: PHASES[0]}), job.save("c"))
        assert a == c == [b"saved"] * 2
        assert isinstance(b[0], RemoteProcessError)
        assert await job.save("b") == [b"saved"] * 2
        assert job.service.keys == []


saves = st.lists(
    st.tuples(
        st.sampled_from("xy"),
        st.dictionaries(st.integers(0, 2), st.sampled_from(PHASES), max_size=3),
        st.dictionaries(st.integers(0, 2), st.sampled_from([0.0, 0.002, 0.01]), max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(saves, st.integers(0, 2))
def test_whatever_failed_before_the_next_save_succeeds(history, primary):
    async def run():
        job = Job(3, primary=primary)
        async with asyncio.timeout(30):
            for place, failures, late in history:
                found = await job.save(place, failures, late=late)
                if failures:
                    assert all(isinstance(said, OSError) for said in found), found
                else:
                    assert found == [b"saved"] * 3
            for place in "xy":
                assert await job.save(place) == [b"saved"] * 3
        assert job.service.keys == []

    asyncio.run(run())
