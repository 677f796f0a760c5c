"""One Checkpointer used from many threads at once, in every way."""

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import uuid

import pytest

from holdfast_manager import training
from holdfast_manager.errors import (
    PinExistsError,
    PinNotFoundError,
    StepAlreadyExistsError,
    StepNotFoundError,
    StepPinnedError,
)
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_storage.errors import (
    CheckpointDeletedError,
    CheckpointNotFoundError,
    CommitConflictError,
)

# What a call may answer because of what the others do at the same time.
EXPECTED = (
    StepAlreadyExistsError,
    StepNotFoundError,
    StepPinnedError,
    PinExistsError,
    PinNotFoundError,
    CheckpointNotFoundError,
    CheckpointDeletedError,
    CommitConflictError,  # an overwrite of what is removed at this moment
    concurrent.futures.CancelledError,
)
STEPS = range(12)


class Actor:
    """One thread: random calls, and a log of what was said to be committed or removed."""

    def __init__(self, run, seed, turns):
        self.run, self.random, self.turns = run, random.Random(seed), turns
        self.failure = None

    def __call__(self):
        calls = (self.save, self.save_async, self.overwrite, self.load, self.look, self.delete)
        try:
            for _ in range(self.turns):
                call = self.random.choice((*calls, self.pin, self.unpin, self.cancel))
                with contextlib.suppress(*EXPECTED):
                    call(self.random.choice(STEPS))
        except BaseException as error:
            self.failure = error

    def save(self, step):
        assert self.run.save(step, {"step": step}, force=True).saved

    def save_async(self, step):
        self.run.save_async(step, {"step": step}, force=True).on_complete(lambda _: self.look(step))

    def overwrite(self, step):
        self.run.save(step, {"step": step}, overwrite=True, force=True)

    def load(self, step):
        assert self.run.load(step)["step"] == step

    def look(self, step):
        self.run.reload()
        listed = [entry.step for entry in self.run.checkpoints]
        assert listed == sorted(set(listed))
        self.run.should_save(step)
        self.run.explain()

    def delete(self, step):
        self.run.delete(step)

    def pin(self, step):
        self.run.pin(step, f"pin-{self.random.randrange(3)}")

    def unpin(self, step):
        self.run.unpin(f"pin-{self.random.randrange(3)}")

    def cancel(self, step):
        self.run.cancel()


@pytest.mark.parametrize("keep", [None, LatestN(4)], ids=["all", "latest-4"])
def test_threads_do_everything_at_once_and_nothing_unexpected_happens(keep):
    url = f"memory://threads-{uuid.uuid4().hex}/job"
    run = training.Checkpointer(url, preservation_policy=keep)
    actors = [Actor(run, seed, turns=12) for seed in range(5)]
    threads = [threading.Thread(target=actor) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
        assert not thread.is_alive()
    assert [actor.failure for actor in actors] == [None] * len(actors)
    with contextlib.suppress(*EXPECTED):
        run.wait()  # it tells of a background save that nobody asked
    known = [entry.step for entry in run.checkpoints]
    for step in known:
        assert run.load(step)["step"] == step
    pinned = set(run.pins.values())
    run.close()
    fresh = training.Checkpointer(url)
    assert [entry.step for entry in fresh.checkpoints] == known
    assert pinned <= set(known)


def test_a_commit_that_was_told_is_never_lost_to_other_threads():
    url = f"memory://threads-{uuid.uuid4().hex}/job"
    run = training.Checkpointer(url)
    told = []

    def save(first):
        for step in range(first, 20, 4):
            run.save(step, {"step": step}, force=True)
            told.append(step)

    def disturb():
        while len(told) < 20 and any(thread.is_alive() for thread in threads):
            run.reload()
            run.wait()

    threads = [threading.Thread(target=save, args=(first,)) for first in range(4)]
    other = threading.Thread(target=disturb)
    for thread in (*threads, other):
        thread.start()
    for thread in (*threads, other):
        thread.join(200)
        assert not thread.is_alive()
    assert sorted(told) == list(range(20))
    run.wait()
    assert [entry.step for entry in run.checkpoints] == list(range(20))
    run.close()


def test_a_save_that_is_begun_while_the_run_is_closed_is_waited_for_or_refused():
    for _ in range(10):
        run = training.Checkpointer(f"memory://threads-{uuid.uuid4().hex}/job")
        responses = []

        def save(run=run, responses=responses):
            with contextlib.suppress(ValueError):  # it is closed
                responses.append(run.save_async(1, {"step": 1}))

        thread = threading.Thread(target=save)
        thread.start()
        run.close()
        assert all(response.done() for response in responses)
        thread.join()
        assert all(response.result().saved for response in responses)


def test_a_failed_save_is_told_to_its_own_caller_and_not_to_another():
    url = f"memory://threads-{uuid.uuid4().hex}/job"
    first, second = training.Checkpointer(url), training.Checkpointer(url)
    first.save(1, {"step": 1})
    response = second.save_async(1, {"step": 2})  # it does not know that 1 is there
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        told = [pool.submit(second.wait) for _ in range(4)]
        failures = [one.exception() for one in told]
    assert len([failure for failure in failures if failure is not None]) == 1
    (failure,) = [failure for failure in failures if failure is not None]
    assert isinstance(failure, FileExistsError)
    assert "the save of step 1" in failure.__notes__[0]
    assert response.observed
    first.close()
    second.close()


def test_a_listing_from_before_brings_nothing_back_and_loses_nothing(monkeypatch):
    run = training.Checkpointer(f"memory://threads-{uuid.uuid4().hex}/job")
    for step in (1, 2, 3):
        run.save(step, {"step": step})
    directory, began, go_on = run._run.directory, threading.Event(), threading.Event()
    look = directory.look

    async def slow():
        listed = await look()
        began.set()
        await asyncio.to_thread(go_on.wait)
        return listed

    monkeypatch.setattr(directory, "look", slow)
    reloading = threading.Thread(target=run.reload)
    reloading.start()
    began.wait()
    run.delete(2)
    run.save(4, {"step": 4})
    go_on.set()
    reloading.join()
    assert [entry.step for entry in run.checkpoints] == [1, 3, 4]

    began.clear()
    go_on.clear()
    old = run.checkpoints[0]
    reloading = threading.Thread(target=run.reload)
    reloading.start()
    began.wait()
    go_on.set()
    reloading.join()
    run._run.known.drop(old)  # its entry is another one by now, of the same commit
    assert [entry.step for entry in run.checkpoints] == [3, 4]
    run.save(1, {"step": 1}, force=True, overwrite=True)
    run._run.known.drop(old)  # committed anew since
    assert [entry.step for entry in run.checkpoints] == [1, 3, 4]
    run.close()
