"""The lease of a run: who gets it, who waits, and what is fenced."""

import asyncio
import dataclasses
import os
import uuid

import pytest

from holdfast_metadata import Lease, lease_epoch, lease_name
from holdfast_storage import LeaseHeldError, LeaseLostError, open_backend
from holdfast_storage.commit import identity
from holdfast_storage.lease import Patience, ProcessLeases, acquire, other_writer
from holdfast_storage.lease.epochs import list_epochs, read_epoch
from holdfast_storage.testing.faulty import Fault, FaultyBackend


class Clock:
    """A monotonic clock that moves only while somebody waits; things may happen meanwhile."""

    def __init__(self):
        self.now = 0.0
        self.waited = []
        self.meanwhile = {}

    async def sleep(self, seconds):
        self.now += seconds
        self.waited.append(seconds)
        act = self.meanwhile.pop(len(self.waited), None)
        if act is not None:
            await act()

    @property
    def patience(self):
        return Patience(clock=lambda: self.now, sleep=self.sleep)


class Job:
    """A process on a host of its own."""

    def __init__(self, backend, host="far-away"):
        self.backend = backend
        self.leases = ProcessLeases()
        self.clock = Clock()
        self._host = host

    def mark(self):
        own = identity.new_mark(uuid.uuid4().hex, "lease")
        return dataclasses.replace(own, host=self._host, boot_id=self._host, pid=4711)

    async def acquire(self, **how):
        return await acquire(
            self.backend,
            patience=self.clock.patience,
            leases=self.leases,
            mark=self.mark,
            beat_s=3600,
            **how,
        )


@pytest.fixture(params=["memory", "local"])
def backend(request, tmp_path):
    if request.param == "local":
        return open_backend(str(tmp_path / "run"))
    return open_backend(f"memory://lease-{uuid.uuid4().hex}/run")


@pytest.fixture
def jobs(backend):
    made = [Job(backend, "first-host"), Job(backend, "second-host"), Job(backend, "third-host")]
    yield made
    for job in made:
        job.leases.release_all()


async def epochs(backend):
    return sorted(await list_epochs(backend))


def test_an_epoch_has_one_name():
    assert lease_name(7) == "00000007"
    assert lease_epoch("00000007") == 7
    assert lease_epoch(lease_name(10**9)) == 10**9
    for other in ("00000000", "7", "000000007", "0000000a", "00000007.tmp"):
        assert lease_epoch(other) is None


async def test_the_first_takes_it_and_a_second_that_sees_it_move_is_told_who(jobs, backend):
    first, second, _ = jobs
    held = await first.acquire()
    assert held.epoch == 1
    second.clock.meanwhile[4] = held.beat
    with pytest.raises(LeaseHeldError, match=r"process 4711 on first-host.*takeover=True") as told:
        await second.acquire()
    assert (told.value.host, told.value.pid) == ("first-host", 4711)
    assert sum(second.clock.waited) == 4  # as soon as it moved
    assert await epochs(backend) == [1]
    await held.require()


async def test_a_silent_holder_is_dead_after_thirty_seconds_of_the_observers_clock(
    jobs, backend, caplog
):
    first, second, _ = jobs
    old = await first.acquire()
    new = await second.acquire()
    assert 30 <= sum(second.clock.waited) <= 32
    (told,) = [one.message for one in caplog.records if one.levelname == "WARNING"]
    assert "process 4711 on first-host wrote to" in told
    assert "watching for up to 30 s" in told
    assert new.epoch == 2
    assert await epochs(backend) == [2]  # the older is cleared away, once nothing can come of it
    await new.require()
    with pytest.raises(LeaseLostError, match=r"process 4711 on second-host"):
        await old.require()
    with pytest.raises(LeaseLostError):
        old.refuse_if_lost(backend)
    await old.beat()
    assert await epochs(backend) == [2]


async def test_a_released_lease_is_free_at_once_and_nothing_is_looked_for(jobs, backend):
    first, second, _ = jobs
    held = await first.acquire()
    held.leave()
    await asyncio.to_thread(held.join)
    assert (await read_epoch(backend, 1)).released
    view = FaultyBackend(backend, reads=True)
    second.backend = view
    assert (await second.acquire()).epoch == 2
    assert second.clock.waited == []
    touched = [(call.operation, call.key) for call in view.calls if call.operation != "stat"]
    assert touched == [
        ("children", "_lease"),
        ("get", "_lease/00000001"),
        ("put", "_lease/00000002"),
        ("children", "_lease"),
        ("delete", "_lease/00000001"),
    ]


async def test_a_release_that_comes_while_it_is_watched_is_seen(jobs):
    first, second, _ = jobs
    held = await first.acquire()

    async def release():
        held.leave()
        await asyncio.to_thread(held.join)

    second.clock.meanwhile[2] = release
    assert (await second.acquire()).epoch == 2
    assert sum(second.clock.waited) == 2


async def test_a_takeover_waits_for_nobody(jobs):
    first, second, _ = jobs
    old = await first.acquire()
    new = await second.acquire(takeover=True)
    assert second.clock.waited == []
    assert new.epoch == 2
    with pytest.raises(LeaseLostError):
        await old.require()


async def test_one_process_shares_its_lease_until_the_last_has_left(jobs, backend):
    first, *_ = jobs
    one = await first.acquire()
    other = await first.acquire()
    assert other is one
    one.leave()
    await one.beat()
    assert not (await read_epoch(backend, 1)).released
    other.leave()
    await asyncio.to_thread(one.join)
    assert (await read_epoch(backend, 1)).released
    assert (await first.acquire()).epoch == 2


async def test_a_process_takes_over_from_itself_when_it_is_told_to(jobs):
    first, *_ = jobs
    one = await first.acquire()
    two = await first.acquire(takeover=True)
    assert (one.epoch, two.epoch) == (1, 2)
    assert await first.acquire() is two
    with pytest.raises(LeaseLostError):
        await one.require()


async def test_writers_of_one_process_that_come_together_share(jobs):
    first, *_ = jobs
    held = await asyncio.gather(*(first.acquire() for _ in range(5)))
    assert len({lease.ident for lease in held}) == 1


async def test_of_processes_that_come_together_one_gets_it(jobs, backend):
    for job in jobs:
        job.clock.meanwhile[1] = lambda: asyncio.sleep(0)
    taken = await asyncio.gather(*(job.acquire() for job in jobs), return_exceptions=True)
    held = [lease for lease in taken if not isinstance(lease, BaseException)]
    assert all(
        isinstance(lost, LeaseHeldError | LeaseLostError) for lost in taken if lost not in held
    )
    valid = []
    for lease in held:  # none of them beats: who waited for long enough took over
        try:
            await lease.require()
            valid.append(lease)
        except LeaseLostError:
            pass
    assert len(valid) == 1
    assert valid[0].epoch == max(await epochs(backend))


async def test_a_holder_whose_process_is_gone_is_succeeded_at_once(backend, jobs):
    gone = dataclasses.replace(
        identity.new_mark(uuid.uuid4().hex, "lease"), pid=2**22 + 1, process_start="1"
    )
    await backend.put("_lease/00000041", Lease(41, gone).to_bytes())
    held = await jobs[0].acquire()
    assert held.epoch == 42
    assert jobs[0].clock.waited == []
    assert await epochs(backend) == [42]


async def test_a_holder_that_lives_on_this_host_is_refused_at_once(backend, jobs):
    import os

    parent = os.getppid()
    here = dataclasses.replace(
        identity.new_mark(uuid.uuid4().hex, "lease"),
        pid=parent,
        process_start=identity._process_start(parent),
    )
    await backend.put("_lease/00000001", Lease(1, here).to_bytes())
    with pytest.raises(LeaseHeldError, match=f"process {parent} "):
        await jobs[0].acquire()
    assert jobs[0].clock.waited == []


async def test_a_lost_reply_to_the_epoch_is_asked_for(backend, jobs):
    jobs[0].backend = FaultyBackend(backend, {1: Fault.LOSE_REPLY})
    held = await jobs[0].acquire()
    assert held.epoch == 1
    await held.require()


async def test_one_who_slept_before_it_made_an_epoch_that_was_cleared_away_has_lost(backend, jobs):
    first, second, third = jobs
    slow = FaultyBackend(backend, {1: Fault.PAUSE})
    first.backend = slow
    late = asyncio.create_task(first.acquire())
    await slow.reached.wait()
    await second.acquire()
    held = await third.acquire(takeover=True)
    assert held.epoch == 2
    assert await epochs(backend) == [2]  # the first is free again
    slow.resume.set()
    with pytest.raises(LeaseLostError):
        await late
    await held.require()


async def test_others_see_a_writer_and_their_own_process_does_not(jobs, backend):
    first, second, _ = jobs
    assert await other_writer(backend, leases=second.leases) is None
    held = await first.acquire()
    second.clock.meanwhile[1] = held.beat
    seen = await other_writer(backend, patience=second.clock.patience, leases=second.leases)
    assert seen.lease.by.host == "first-host"
    assert await other_writer(backend, leases=first.leases) is None
    silent = Clock()
    assert await other_writer(backend, patience=silent.patience, leases=second.leases) is None


async def test_a_release_is_not_stored_while_something_may_be_decided(jobs, backend):
    held = await jobs[0].acquire()
    with held.at_work():
        held.leave()
        await asyncio.to_thread(held.join)
    assert not (await read_epoch(backend, 1)).released


async def test_a_lease_that_is_refreshed_for_long_is_one_file(jobs, tmp_path):
    job = Job(open_backend(str(tmp_path / "long")), "first-host")
    held = await job.acquire()
    before = (await read_epoch(job.backend, 1)).by.beat
    for _ in range(3):
        await held.beat()
    assert (await read_epoch(job.backend, 1)).by.beat == before + 3
    job.leases.release_all()
    assert (await read_epoch(job.backend, 1)).released
    assert os.listdir(tmp_path / "long/_lease") == ["00000001"]


async def test_who_leaves_a_lease_that_others_share_waits_for_nothing(jobs, monkeypatch):
    one = await jobs[0].acquire()
    assert await jobs[0].acquire() is one
    one.leave()
    monkeypatch.setattr(one._thread, "join", lambda *_: pytest.fail("waited"))
    one.join()
    monkeypatch.undo()
    one.leave()


async def test_a_run_whose_folder_was_removed_was_not_taken_over(backend, jobs):
    held = await jobs[0].acquire()
    await backend.delete_prefix("_lease")
    with pytest.raises(LeaseLostError, match="somebody has removed its folder"):
        await held.require(backend)


async def test_a_run_that_was_removed_and_made_anew_is_not_the_old_writer_s(jobs, backend):
    first, second, _ = jobs
    old = await first.acquire()
    await backend.delete_prefix("_lease")
    new = await second.acquire()
    assert new.epoch == old.epoch
    await old.beat()  # does not write over it
    await new.require()
    with pytest.raises(LeaseLostError, match="process 4711 on second-host"):
        await old.require()
    await new.require()
