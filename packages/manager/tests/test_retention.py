"""Removal of old steps: un-committed first, deleted behind that, held up by nothing."""

import asyncio
import dataclasses
import datetime
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine import deletion
from holdfast_manager.engine.deletion import Deletion
from holdfast_manager.engine.reaper import Reaper
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.run_directory import hints
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import Pace, pace, read_record
from holdfast_storage.commit import trash as tickets
from holdfast_storage.errors import StorageError, TransientStorageError
from holdfast_storage.testing.faulty import FaultyBackend


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def files(place):
    """Every file of a run, those of un-committed steps too."""

    async def walk():
        return sorted([info.key async for info in open_backend(place).walk("")])

    return get_loop().run(walk())


class Reluctant(FaultyBackend):
    """A store that deletes data only once it is allowed to, and may refuse to write."""

    def __init__(self, inner):
        super().__init__(inner)
        self.allowed = threading.Event()
        self.asked = threading.Event()
        self.refused = None

    async def delete(self, key):
        if "/" in key and not key.startswith("_"):  # a file of a step
            self.asked.set()
            while not self.allowed.is_set():
                await asyncio.sleep(0.001)
        await super().delete(key)

    async def put(self, key, data, **how):
        if self.refused is not None and self.refused in key:
            raise TransientStorageError("injected: 503", key=key, root=self.root)
        return await super().put(key, data, **how)


@pytest.fixture
def store(place, monkeypatch):
    """A run on a store whose deletions take for ever."""
    view = Reluctant(open_backend(place))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    monkeypatch.setattr(deletion, "PATIENCE", datetime.timedelta(milliseconds=10))
    view.place = place
    yield view
    view.allowed.set()


def test_deletions_that_never_end_delay_no_save_and_no_wait(store):
    run = training.Checkpointer(store.place, preservation_policy=LatestN(1))
    for step in range(6):
        assert run.save(step, state(step))
        run.wait()
        assert steps(run) == [step]
    assert store.asked.is_set()
    assert steps(training.Checkpointer(store.place)) == [5]  # un-committed for everybody
    assert run.load()["w"][0] == 5
    run.close()


def test_what_was_not_deleted_is_finished_by_the_next_process_that_saves(store, monkeypatch):
    with training.Checkpointer(store.place, preservation_policy=LatestN(1)) as run:
        for step in range(3):
            run.save(step, state(step))
    whole_step = sum(key.startswith("2/") for key in files(store.place))
    assert len(files(store.place)) > 2 * whole_step  # nothing was deleted yet
    monkeypatch.setattr(deletion, "PATIENCE", datetime.timedelta(seconds=60))
    store.allowed.set()
    reader = training.Checkpointer(store.place)
    assert steps(reader) == [2]
    reader.close()
    assert len(files(store.place)) > 2 * whole_step  # a reader removes nothing
    with training.Checkpointer(store.place) as run:
        assert run.save(3, state(3))
    left = [key for key in files(store.place) if not key.startswith(("2/", "3/", "_lease/"))]
    assert left in ([], ["0/_COMMIT.json", "1/_COMMIT.json"])  # what says that they are gone


def test_a_save_that_fails_collects_nothing(store):
    store.allowed.set()
    run = training.Checkpointer(store.place, preservation_policy=LatestN(1))
    run.save(1, state(1))
    run.wait()
    store.refused = "_METADATA"
    with pytest.raises(StorageError, match="503"):
        run.save(2, state(2))
    run.wait()
    assert steps(run) == steps(training.Checkpointer(store.place)) == [1]
    assert run.load()["w"][0] == 1
    store.refused = None
    assert run.save(2, state(2))
    run.wait()
    assert steps(run) == [2]
    run.close()


def test_a_step_that_could_not_be_removed_stays_listed_and_is_removed_next_time(store, caplog):
    store.allowed.set()
    run = training.Checkpointer(store.place, preservation_policy=LatestN(1))
    run.save(1, state(1))
    store.refused = "_collecting"
    assert run.save(2, state(2))
    run.wait()
    assert steps(run) == [1, 2]
    assert "could not remove old steps" in caplog.text
    store.refused = None
    assert run.save(3, state(3))
    run.wait()
    assert steps(run) == [3]
    run.close()


def test_a_deletion_that_the_end_of_the_program_stops_says_nothing():
    script = """
import asyncio, threading
from holdfast_manager.engine.reaper import Reaper

ended = threading.Event()

async def removal():
    while threading.main_thread().is_alive():
        await asyncio.sleep(0.01)
    ended.set()
    raise RuntimeError("cannot schedule new futures after shutdown")

reaper = Reaper()
reaper.add(removal, "what dead writers left")
threading.Thread(target=lambda: (ended.wait(20), reaper.close(20))).start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


class Asleep(FaultyBackend):
    """A store on which no deletion in a run ends before it is allowed to."""

    def __init__(self, inner):
        super().__init__(inner)
        self.hints = dataclasses.replace(self.hints, round_trips=True)
        self.allowed = threading.Event()
        self.asked = set()

    async def delete(self, key):
        if not key.startswith((".holdfast-", "_lease")):
            self.asked.add(key.partition("/")[0])
            while not self.allowed.is_set():
                await asyncio.sleep(0.001)
        await super().delete(key)


@pytest.mark.parametrize("trash", [None, training.Trash()])
def test_no_save_no_wait_and_no_decision_waits_for_a_deletion_of_any_kind(
    place, monkeypatch, trash
):
    view = Asleep(open_backend(place))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    monkeypatch.setattr(hints, "PATIENCE_S", 0.001)
    monkeypatch.setattr(tickets, "PATIENCE_S", 0.001)
    short = training.Deletion(patience=datetime.timedelta(milliseconds=10))
    run = training.Checkpointer(place, preservation_policy=LatestN(1), trash=trash, deletion=short)
    for step in range(4):
        assert run.should_save(step)
        assert run.save(step, state(step))
        run.wait()
        assert steps(run) == [step]
    assert run.save(4, state(4))
    run.delete(3, missing_ok=True)  # the policy may come first
    assert run.save(5, state(5))
    run.wait()
    assert {"_collecting", "_committed"} <= view.asked
    assert "0" in view.asked or trash or place.startswith("/")
    run.close()  # is bounded, and leaves the rest to the next
    view.allowed.set()
    with training.Checkpointer(place, trash=trash) as later:
        assert later.load(5)["w"][0] == 5
        for step in range(5):  # a hint may be stale, and decides nothing
            with pytest.raises(StepNotFoundError):
                later.load(step)
        later.sweep(older_than=datetime.timedelta(0))
        if trash:
            assert [entry.step for entry in later.trash] == [0, 1, 2, 3, 4]
            later.empty_trash()
    with training.Checkpointer(place, trash=trash) as last:
        last.sweep(older_than=datetime.timedelta(0))
    left = [key for key in files(place) if not key.startswith(("5/", "_"))]
    assert [key for key in left if not key.endswith("/_COMMIT.json")] == []


def test_a_deletion_that_fails_stops_no_other_and_is_reported(place, caplog):
    reaper = Reaper(Deletion(at_once=1))
    done = []

    async def fail():
        raise TransientStorageError("injected: 503")

    async def succeed():
        done.append(True)

    reaper.add(fail, "the first")
    for _ in range(3):
        reaper.add(succeed, "another")
    reaper.close(60)
    assert len(done) == 3
    assert len(reaper.failed) == 1
    assert "could not delete the first" in caplog.text


def test_no_more_deletions_than_allowed_run_at_once(place):
    reaper = Reaper(Deletion(at_once=3))
    running, most = [], []

    async def work():
        running.append(None)
        most.append(len(running))
        await asyncio.sleep(0.001)
        running.pop()

    for _ in range(12):
        reaper.add(work, "x")
    reaper.close(60)
    assert len(most) == 12
    assert max(most) == 3


def test_objects_are_deleted_at_the_rate_that_is_given(place, monkeypatch):
    """By a clock of its own: a turn waits until those before it have had theirs."""
    now = [0.0]

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(pace, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(pace, "asyncio", types.SimpleNamespace(sleep=sleep))

    async def delete():
        backend = open_backend(place)
        for number in range(6):
            await backend.put(f"step/{number}", b"x")
        await backend.put("step/_ATTEMPT.json", b"x")
        await Pace(2).delete_prefix(backend, "step")
        return [info async for info in backend.walk("step")]

    assert get_loop().run(delete()) == []
    assert now[0] == 2.5  # six objects at two in a second; the first at once


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"at_once": 0}, "at_once is an integer >= 1, got 0"),
        ({"at_once": 1.5}, r"at_once is an integer >= 1, got 1\.5"),
        ({"objects_per_second": 0}, "objects_per_second is a number > 0 or None, got 0"),
        ({"objects_per_second": "1"}, "objects_per_second is a number > 0 or None, got '1'"),
        ({"patience": 3}, r"patience is a datetime\.timedelta, got 3"),
    ],
)
def test_options_of_deletion_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Deletion(**wrong)


def test_a_newest_step_that_is_not_whole_keeps_its_place_from_no_other(place):
    run = training.Checkpointer(place, preservation_policy=LatestN(1))
    other = training.Checkpointer(place)
    for step in (1, 2):
        assert other.save(step, state(step))
    run.reload()
    assert other.save(9, state(9))
    run.reload()
    prefix = get_loop().run(read_record(open_backend(place), "9")).record.data
    get_loop().run(open_backend(place).delete(f"9/{prefix}/state/_TREE.json".replace("//", "/")))
    assert run.save(3, state(3), force=True)
    run.wait()
    assert steps(run) == [3]  # 9 is there for a person to look at, and holds nothing back
    assert run.load()["w"][0] == 3
    assert get_loop().run(read_record(open_backend(place), "9")).committed
    run.close()
    other.close()


def test_house_keeping_that_was_stopped_stops_none_that_follows(place):
    run = training.Checkpointer(place, preservation_policy=LatestN(1))
    run.save(1, state(1))
    run.wait()
    asked, answer = threading.Event(), threading.Event()

    class Slow:
        def should_preserve(self, checkpoints, *, context):
            asked.set()
            answer.wait()
            return [True] * len(checkpoints)

    run._run.retention.policy = Slow()
    run.save(2, state(2))
    asked.wait()
    run._run.retention._running.cancel()  # as a deadline does that has passed
    answer.set()
    run._run.retention.policy = LatestN(1)
    run.save(3, state(3))
    run.wait()
    assert steps(run) == [3]
    run.close()
