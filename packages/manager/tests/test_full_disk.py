"""Where nothing can be written any more, steps can be removed: that is what makes room."""

import dataclasses
import datetime
import functools
import sys
from subprocess import Popen
from unittest import mock

import numpy as np
import pytest

from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine.holds import Holds
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import StepPinnedError
from holdfast_manager.run_directory import RunDirectory
from holdfast_metadata import COLLECTING_DIR
from holdfast_storage import StorageTimeoutError, get_loop, open_backend
from holdfast_storage.commit import identity, read_record
from holdfast_storage.commit.sweep import StoreClock
from holdfast_storage.errors import LeaseHeldError, PreconditionFailedError, StorageFullError
from holdfast_storage.lease import ProcessLeases
from holdfast_storage.testing.faulty import FaultyBackend
from holdfast_storage.testing.processes import Processes
from holdfast_storage.testing.tables import TableBackend


class Disk(FaultyBackend):
    """One that may be full: an empty file has its place still."""

    full = False

    async def put(self, key, data, **how):
        if self.full and data:
            raise StorageFullError("no space", key=key, root=self.root)
        return await super().put(key, data, **how)


def steps(listed):
    return [entry.step for entry in listed]


@pytest.fixture
def disk(tmp_path):
    """A disk with a run of four steps, of which 1 is pinned."""
    disk = Disk(open_backend(str(tmp_path / "run")))
    with opened(disk) as run:
        for step in (1, 2, 3, 4):
            assert run.save(step, {"w": np.full(3, step)})
        run.pin(1, "old")
        run.wait()
    return disk


def opened(disk, **how):
    with mock.patch.object(Context, "open_backend", return_value=disk):
        return training.Checkpointer("memory://unused", **how)


def folders(disk):
    """Those of the run's steps in which any file is."""

    async def walk():
        return {info.key.partition("/")[0] async for info in disk.walk("")}

    return {name for name in get_loop().run(walk()) if not name.startswith("_")}


def test_a_step_is_removed_in_the_process_that_filled_the_disk(disk):
    with opened(disk) as run:
        assert run.save(5, {"w": np.full(3, 5)})
        disk.full = True
        with pytest.raises(StorageFullError):
            run.save(6, {"w": np.full(3, 6)})
        assert run.delete(2)
        with pytest.raises(StepPinnedError):
            run.delete(1)
        run._run.reaper.close(60)
    assert steps(opened(disk).checkpoints) == [1, 3, 4, 5]
    assert folders(disk) == {"1", "3", "4", "5"}
    assert announced(disk) == set()


def test_a_step_is_removed_in_a_process_that_comes_later_and_cannot_take_the_lease(disk, caplog):
    disk.full = True
    with opened(disk) as run:
        assert run.delete(2)
        assert "without a lease" in caplog.text
        with pytest.raises(StepPinnedError):
            run.delete(1)
        disk.full = False  # the step's room
        assert run.save(5, {"w": np.full(3, 5)})
    assert steps(opened(disk).checkpoints) == [1, 3, 4, 5]


def test_what_is_in_the_trash_is_given_up(disk):
    with opened(disk, trash=training.Trash()) as run:
        run.delete(2)
    disk.full = True
    with opened(disk) as run:
        assert run.empty_trash() == [2]
        run._run.reaper.close(60)
        assert steps(run.trash) == []


def test_nothing_is_removed_without_a_lease_that_another_process_has(disk, monkeypatch):
    def later(**how):
        """Another process, to which the disk is full."""
        view = processes.start()
        lease = functools.partial(WritingLease, leases=ProcessLeases())
        monkeypatch.setattr("holdfast_manager.engine.run.WritingLease", lease)
        return opened(view, **how)

    processes = Processes(disk)
    with processes.known_to_the_system():
        writer = later()
        assert writer.save(5, {"w": np.full(3, 5)})
        disk.full = True
        for takeover, told in ((False, LeaseHeldError), (True, StorageFullError)):
            with pytest.raises(told):
                later(takeover=takeover).delete(2)
        assert steps(opened(disk).checkpoints) == [1, 2, 3, 4, 5]
        disk.full = False
        writer.close()


def test_an_announcement_without_words_is_of_any_step(disk):
    directory = RunDirectory(disk)
    holds = Holds(directory, patience_s=0.1)
    entry = get_loop().run(directory.list_steps())[2]
    disk.full = True

    async def meet():
        async with holds.removing(["2"]) as held:
            assert set(held) == {1}
            disk.full = False
            with pytest.raises(StorageTimeoutError):
                await holds.pins.pin(entry, "mine")

    get_loop().run(meet())
    holds.removals.ending.close(60)
    get_loop().run(holds.pins.pin(entry, "mine"))
    assert get_loop().run(holds.pins.read()) == {"old": 1, "mine": 3}


def test_an_announcement_without_words_goes_with_its_remover_or_when_it_is_old(disk, monkeypatch):
    gone = Popen([sys.executable, "-c", ""])
    gone.wait()
    mark = dataclasses.replace(identity.new_mark("dead", "removal"), pid=gone.pid)
    dead = f"{COLLECTING_DIR}/dead.{identity.in_a_name(mark)}"
    elsewhere = f"{COLLECTING_DIR}/other.{identity.in_a_name(dataclasses.replace(mark, host='b'))}"
    unknown = f"{COLLECTING_DIR}/unknown"
    for key in (dead, elsewhere, unknown):
        get_loop().run(disk.put(key, b""))
    assert announced(disk) == {dead, elsewhere, unknown}
    directory = RunDirectory(disk)
    removals = Holds(directory, patience_s=0.1).removals
    get_loop().run(removals.forget_dead())
    assert announced(disk) == {elsewhere, unknown}
    entry = get_loop().run(directory.list_steps())[2]
    with pytest.raises(StorageTimeoutError):
        get_loop().run(removals.settle(entry))
    for key in (elsewhere, unknown):
        get_loop().run(disk.delete(key))
    get_loop().run(disk.put(dead, b""))
    get_loop().run(removals.settle(entry))  # nobody waits for who is gone
    get_loop().run(disk.put(unknown, b""))
    hours = datetime.timedelta(hours=2).total_seconds()
    age = StoreClock.age

    async def later(clock, modified):
        return await age(clock, modified) + hours

    monkeypatch.setattr(StoreClock, "age", later)
    get_loop().run(removals.forget_dead())
    assert announced(disk) == set()


def announced(disk):
    return {info.key for info in get_loop().run(disk.children(COLLECTING_DIR)).objects}


def test_who_takes_over_fences_every_step_where_a_removal_had_no_room_to_name_one():
    store = TableBackend()  # un-commits by a record, that says so
    processes = Processes(store)
    with processes.known_to_the_system():
        run = opened(processes.start())
        assert run.save_checkpointables(1, {"x": JsonSave({"of": 1})})
        run.wait()
        get_loop().run(store.put(f"{COLLECTING_DIR}/empty", b""))
        stale = get_loop().run(read_record(store, "1")).unchanged
        lease = WritingLease(processes.start(), _nothing, takeover=True, leases=ProcessLeases())
        get_loop().run(_take(lease))
        with pytest.raises(PreconditionFailedError):
            get_loop().run(store.put("1/_COMMIT.json", b"{}", condition=stale))
        lease.close()
        run.close()


async def _take(lease):
    async with lease.writing():
        pass


async def _nothing():
    pass
