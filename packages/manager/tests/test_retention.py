"""Removal of old steps: un-committed first, deleted behind that, held up by nothing."""

import asyncio
import datetime
import subprocess
import sys
import threading

import numpy as np
import pytest

from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine import deletion
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_storage import get_loop, open_backend
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
        if "/" in key:  # a file of a step
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
    left = [key for key in files(store.place) if not key.startswith(("2/", "3/"))]
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
    store.refused = ".holdfast-collecting"
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
