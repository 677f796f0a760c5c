"""Readers' leases: a step that is being read stays, and dead readers hold nothing."""

import asyncio
import dataclasses
import os
import time

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.engine.holds import Holds
from holdfast_manager.engine.readers import Readers
from holdfast_manager.engine.reading import close_all
from holdfast_manager.errors import StepBeingReadError, StepNotFoundError
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.run_directory import RunDirectory
from holdfast_metadata import MetadataError, ReaderLease
from holdfast_storage import StoragePermissionError, get_loop, open_backend
from holdfast_storage.commit import identity
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def save(place, *numbers, policy=None):
    with training.Checkpointer(place, preservation_policy=policy) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def leases(place):
    listing = get_loop().run(open_backend(place).children("_readers"))
    return [info.key for info in listing.objects]


def put_lease(place, *held, **mark):
    """A lease of another host, as that would have put it."""
    by = dataclasses.replace(identity.new_mark("other", "reader", ttl_s=120.0), **mark)
    data = ReaderLease(held, by).to_bytes()
    get_loop().run(open_backend(place).put("_readers/other", data))


ELSEWHERE = {"host": "elsewhere", "boot_id": "another"}


def test_a_step_that_is_being_read_stays_until_it_has_been_read(place):
    save(place, 1)
    with training.Checkpointer(place) as reader, reader.reading() as entry:
        assert entry.step == 1
        save(place, 2, 3, policy=LatestN(1))
        assert len(leases(place)) == 1
        assert reader.load(entry)["w"][0] == 1
        verdict = training.Checkpointer(place, preservation_policy=LatestN(1)).explain()[0]
        assert verdict.kept
        assert f"it is being read by process {os.getpid()} on " in verdict.reasons[0]
        assert steps(training.Checkpointer(place)) == [1, 3]
    assert leases(place) == []
    save(place, 4, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [4]


def test_a_step_that_is_being_read_is_not_deleted_by_name_but_may_be_replaced(place):
    save(place, 1, 2)
    with training.Checkpointer(place) as run:
        with run.reading(1) as entry, run.reading(1):
            with pytest.raises(StepBeingReadError, match=r"step 1 .* was not removed: .* process"):
                run.delete(1)
            assert steps(run) == [1, 2]
            assert run.save(1, state(9), overwrite=True, force=True)
            assert run.load(entry)["w"][0] == 9
        assert run.delete(1)
        with pytest.raises(StepNotFoundError, match="committed steps: 2"), run.reading(1):
            pass
    assert leases(place) == []


def test_a_lease_set_at_any_moment_of_a_removal_is_respected_or_refused(place):
    """Whatever call of the remover it comes before: never held and gone."""
    point, outcomes = 0, set()
    while True:
        point += 1
        url = f"{place}-{point}"
        save(url, 1, 2)
        done, held = get_loop().run(remove_with_a_reader_at(url, point))
        assert held == (1 in steps(training.Checkpointer(url)))
        outcomes.add(held)
        if done:
            break
    assert outcomes == {True, False}


async def remove_with_a_reader_at(url, point):
    """Pauses a removal of step 1 before its mutating call `point`; a reader comes meanwhile."""
    view = FaultyBackend(open_backend(url), {point: Fault.PAUSE})
    removing = asyncio.ensure_future(remove(view))
    reached = asyncio.ensure_future(view.reached.wait())
    await asyncio.wait([removing, reached], return_when=asyncio.FIRST_COMPLETED)
    taking = asyncio.ensure_future(take(open_backend(url)))
    await asyncio.wait([taking], timeout=0.02)
    view.resume.set()
    await removing
    done = not reached.done()
    reached.cancel()
    reading = await taking
    return done, await let_go(reading)


def test_a_removal_at_any_moment_of_taking_a_lease_spares_the_step_or_the_reader_sees_it(place):
    """The other order: the reader pauses before each of its calls, reads included."""
    point, outcomes = 0, set()
    while True:
        point += 1
        url = f"{place}-{point}"
        save(url, 1, 2)
        done, held = get_loop().run(read_with_a_removal_at(url, point))
        assert held == (1 in steps(training.Checkpointer(url)))
        outcomes.add(held)
        if done:
            break
    assert outcomes == {True, False}


async def read_with_a_removal_at(url, point):
    view = FaultyBackend(open_backend(url), {point: Fault.PAUSE}, reads=True)
    taking = asyncio.ensure_future(take(view))
    reached = asyncio.ensure_future(view.reached.wait())
    await asyncio.wait([taking, reached], return_when=asyncio.FIRST_COMPLETED)
    await remove(open_backend(url))
    view.resume.set()
    done = not reached.done()
    reached.cancel()
    return done, await let_go(await taking)


async def remove(backend):
    run = RunDirectory(backend)
    entry = run.describe(1, None, "1")
    async with Holds(run).removing([entry.name]) as held:
        if entry.step not in held:
            await (await run.uncommit(entry))()


async def take(backend):
    run = RunDirectory(backend)
    try:
        return await Holds(run, pause_s=0.001).readers.take(run.describe(1, None, "1"))
    except StepNotFoundError:
        return None


async def let_go(reading):
    if reading is None:
        return False
    await asyncio.to_thread(reading.close)
    return True


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.REFUSE, Fault.LOSE_REPLY])
def test_a_reader_that_fails_at_any_call_leaves_nothing_or_a_lease_that_passes(place, fault):
    save(place, 1, 2)

    async def take_with(point):
        view = FaultyBackend(open_backend(place), {point: fault}, reads=True)
        reading = None
        try:
            reading = await take(view)
        except (Exception, SimulatedCrash):
            failed.append(point)
        calls = len(view.calls)
        view.faults.clear()
        await let_go(reading)
        return calls

    failed = []
    calls = get_loop().run(take_with(0))
    for point in range(1, calls + 1):
        get_loop().run(take_with(point))
        if fault is Fault.CRASH:  # it was this process, which lives
            get_loop().run(open_backend(place).delete_prefix("_readers"))
        assert leases(place) == []
    assert len(failed) > 1
    assert steps(training.Checkpointer(place)) == [1, 2]


def test_a_dead_reader_of_this_host_holds_nothing_and_its_lease_goes(place):
    save(place, 1, 2)
    put_lease(place, 1, pid=2**22 + 5, process_start="1")
    assert training.Checkpointer(place, preservation_policy=LatestN(1)).explain()[0].kept is False
    save(place, 3, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [3]
    assert leases(place) == []


def test_a_reader_of_another_host_holds_a_step_as_long_as_it_says(place):
    save(place, 1, 2)
    put_lease(place, 1, **ELSEWHERE, ttl_s=3600.0)
    save(place, 3, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [1, 3]
    put_lease(place, 1, **ELSEWHERE, ttl_s=-1.0)  # silent for longer than it said
    explained = training.Checkpointer(place, preservation_policy=LatestN(1)).explain()
    assert "on elsewhere, since" in explained[0].reasons[0]  # asking the time would be a write
    save(place, 4, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [4]
    assert leases(place) == []


def test_nothing_is_collected_while_a_young_lease_cannot_be_read(place, caplog, monkeypatch):
    save(place, 1, 2)
    get_loop().run(open_backend(place).put("_readers/odd", b"{"))
    save(place, 3, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [1, 2, 3]
    assert "could not remove old steps" in caplog.text
    with pytest.raises(MetadataError):
        training.Checkpointer(place).explain()
    monkeypatch.setattr("holdfast_manager.engine.readers.UNREADABLE_TTL_S", -1.0)
    save(place, 4, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [4]


def test_a_lease_is_refreshed_by_a_thread_of_its_own(place):
    save(place, 1)
    run = RunDirectory(open_backend(place))
    readers = Readers(run, Holds(run).removals, interval_s=0.001)
    reading = get_loop().run(readers.take(run.describe(1, None, "1")))
    (key,) = leases(place)
    while ReaderLease.from_bytes(get_loop().run(run.backend.get(key))).by.beat < 2:
        time.sleep(0.001)
    reading.close()
    reading.close()
    assert leases(place) == []


def test_a_reader_that_was_silent_too_long_looks_again(place, caplog):
    """Its lease was found dead and removed meanwhile: once with the step, once without."""
    save(place, 1, 2)
    run = RunDirectory(open_backend(place))
    readers = Readers(run, Holds(run).removals, ttl_s=-1.0, interval_s=3600.0)
    reading = get_loop().run(readers.take(run.describe(1, None, "1")))
    try:
        save(place, 3)  # with a policy that keeps it
        assert leases(place) == []
        get_loop().run(reading.beat())
        assert not reading.lost
        assert len(leases(place)) == 1  # held again
        get_loop().run(run.backend.delete_prefix("_readers"))  # by somebody who tidies up
        get_loop().run(reading.beat())
        assert len(leases(place)) == 1
        save(place, 4, policy=LatestN(1))
        get_loop().run(reading.beat())
        assert reading.lost
        assert "was removed while this process read it" in caplog.text
    finally:
        reading.close()
    assert leases(place) == []


def test_at_the_exit_everything_that_is_held_is_let_go(place):
    save(place, 1)
    run = RunDirectory(open_backend(place))
    readers = Holds(run).readers
    held = [get_loop().run(readers.take(run.describe(1, None, "1"))) for _ in range(2)]
    assert len(leases(place)) == 2
    close_all()
    assert leases(place) == []
    for one in held:
        one.close()


class ReadOnly(FaultyBackend):
    """A bucket that may be read only."""

    async def put(self, key, data, **how):
        raise StoragePermissionError("injected: 403", key=key, root=self.root)


def test_a_reader_that_may_not_write_reads_unprotected_and_says_so_once(place, caplog):
    save(place, 1, 2)
    run = RunDirectory(ReadOnly(open_backend(place)))
    readers = Holds(run).readers
    for _ in range(2):
        reading = get_loop().run(readers.take(run.describe(1, None, "1")))
        assert not reading.protected
        reading.close()
    assert caplog.text.count("cannot be written to by this process") == 1
    with pytest.raises(StoragePermissionError):
        get_loop().run(readers.take(run.describe(1, None, "1"), required=True))
    with pytest.raises(StepNotFoundError):
        get_loop().run(readers.take(run.describe(7, None, "7")))
