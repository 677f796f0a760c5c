"""Hints of committed steps: what opening a run costs, and that a wrong hint decides nothing."""

import dataclasses
import logging
import uuid

import numpy as np
import pytest

from holdfast_checkpointer import options
from holdfast_manager import training
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.preservation_policies import LatestN, PreserveAll
from holdfast_manager.run_directory import RunDirectory
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import read_record
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash


class Storage:
    """A store in memory to which each request would be a round trip."""

    def __init__(self, monkeypatch):
        self.url = f"memory://hints-{uuid.uuid4().hex}/run"
        self.faults = {}
        self.reads = True
        self.view = None
        monkeypatch.setattr(options.Context, "open_backend", lambda *_: self.connect())

    def connect(self):
        self.view = FaultyBackend(open_backend(self.url), self.faults, reads=self.reads)
        self.view.hints = dataclasses.replace(self.view.hints, round_trips=True)
        return self.view

    def run(self, coroutine):
        return get_loop().run(coroutine)

    @property
    def plain(self):
        return open_backend(self.url)

    def hints(self):
        listing = self.run(self.plain.children("_committed"))
        return sorted(int(info.key.rpartition("/")[2]) for info in listing.objects)

    def uncommit_behind_its_back(self, step):
        """As a tool would that knows of no hints."""

        async def retire():
            strategy = await self.plain.commit_strategy()
            stored = await read_record(self.plain, str(step))
            await strategy.retire(str(step), expected=stored.attempt)

        self.run(retire())


@pytest.fixture
def storage(monkeypatch):
    return Storage(monkeypatch)


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def save(storage, *numbers, policy=None):
    with training.Checkpointer(storage.url, preservation_policy=policy) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def mutations(view):
    return [call for call in view.calls if call.operation in ("put", "delete", "rename")]


def test_each_committed_step_has_a_hint_and_a_removed_one_has_none(storage):
    save(storage, 1, 2, 3, policy=LatestN(2))
    assert storage.hints() == [2, 3]


def test_a_thousand_steps_open_with_two_listings_and_a_look_at_the_newest(storage):
    save(storage, 1000)

    async def copy():
        record = await storage.plain.get("1000/_COMMIT.json")
        for step in range(1000):
            await storage.plain.put(f"{step}/_COMMIT.json", record, durable=False)
            await storage.plain.put(f"_committed/{step}", b"", durable=False)

    storage.run(copy())
    checkpointer = training.Checkpointer(storage.url)
    asked = [(call.operation, call.key) for call in storage.view.calls]
    assert len(steps(checkpointer)) == 1001
    assert checkpointer.latest.step == 1000
    assert [key for operation, key in asked if operation == "children"] == ["", "_committed"]
    assert all(key.startswith("1000") for operation, key in asked if operation != "children")
    assert len(asked) == 5  # of the newest: the record, the manifest, the files
    del storage.view.calls[:]
    for _ in range(2):
        assert checkpointer.checkpoints[500].commit_timestamp_nsecs > 0
        assert {call.key for call in storage.view.calls} == {"500/_COMMIT.json"}
        assert len(storage.view.calls) == 1


def test_reading_writes_nothing_whatever_is_wrong(storage):
    save(storage, 1, 2)
    storage.uncommit_behind_its_back(2)
    storage.run(storage.plain.delete("_committed/1"))
    storage.run(storage.plain.put("_committed/77", b""))
    checkpointer = training.Checkpointer(storage.url)
    assert steps(checkpointer) == [1]
    np.testing.assert_array_equal(checkpointer.load()["w"], state(1)["w"])
    checkpointer.close()
    assert mutations(storage.view) == []


def test_a_step_without_a_hint_is_found_and_a_writer_repairs(storage):
    save(storage, 1, 2, 3)
    storage.run(storage.plain.delete("_committed/2"))
    storage.run(storage.plain.put("_committed/9", b""))
    checkpointer = training.Checkpointer(storage.url)
    assert steps(checkpointer) == [1, 2, 3]
    checkpointer.save(4, state(4))
    checkpointer.close()
    assert storage.hints() == [1, 2, 3, 4]


def test_a_stale_hint_is_no_step(storage):
    save(storage, 1, 2, 3)
    storage.uncommit_behind_its_back(2)
    checkpointer = training.Checkpointer(storage.url)
    with pytest.raises(StepNotFoundError, match=r"1, 3"):
        checkpointer.load(2)
    assert steps(checkpointer) == [1, 3]


def test_a_stale_hint_does_not_stand_in_the_way_of_a_save(storage):
    save(storage, 1, 2, 3)
    storage.uncommit_behind_its_back(2)
    with training.Checkpointer(storage.url) as checkpointer:
        assert checkpointer.save(2, state(20), force=True)
        with pytest.raises(StepAlreadyExistsError):
            checkpointer.save(3, state(30), force=True)
    with training.Checkpointer(storage.url) as checkpointer:
        assert checkpointer.load(2)["w"][0] == 20
    assert storage.hints() == [1, 2, 3]


def test_a_stale_hint_is_not_kept_in_place_of_a_step(storage):
    save(storage, 1, 2, 3)
    storage.uncommit_behind_its_back(3)
    storage.uncommit_behind_its_back(2)
    save(storage, 4, policy=LatestN(2))
    with training.Checkpointer(storage.url) as checkpointer:
        assert steps(checkpointer) == [1, 4]
    assert storage.hints() == [1, 4]


def test_a_policy_may_read_metrics(storage):
    class Best(PreserveAll):
        def should_preserve(self, checkpoints, *, context):
            losses = [entry.metrics["loss"] for entry in checkpoints]
            return [loss == min(losses) for loss in losses]

    with training.Checkpointer(storage.url, preservation_policy=Best()) as checkpointer:
        for step, loss in enumerate([3.0, 1.0, 2.0]):
            checkpointer.save(step, state(step), metrics={"loss": loss})
        checkpointer.wait()
        assert steps(checkpointer) == [1, 2]


def test_a_damaged_newest_step_is_left_out_and_named(storage, caplog):
    save(storage, 1, 2)
    storage.run(storage.plain.put("2/_COMMIT.json", b"{"))
    with caplog.at_level(logging.WARNING):
        checkpointer = training.Checkpointer(storage.url)
    assert steps(checkpointer) == [1]
    assert "/2 is left out" in caplog.text


def test_a_removed_step_loses_its_hint_before_it_is_uncommitted(storage):
    save(storage, 1, 2)

    async def remove(faults):
        view = FaultyBackend(storage.plain, faults)
        view.hints = dataclasses.replace(view.hints, round_trips=True)
        run = RunDirectory(view)
        await run.uncommit(run.describe(2, None, "2"))

    with pytest.raises(SimulatedCrash):
        storage.run(remove({2: Fault.CRASH}))
    assert storage.hints() == [1]
    with training.Checkpointer(storage.url) as checkpointer:
        assert steps(checkpointer) == [1, 2]  # found by its record
        assert checkpointer.load()["w"][0] == 2


def test_a_hint_that_cannot_be_written_fails_no_save(storage):
    save(storage, 1)
    points = [call.number for call in mutations(storage.view) if call.key == "_committed/1"]
    storage.faults = {}
    storage.url += "-other"
    storage.faults = {points[0]: Fault.REFUSE}
    save(storage, 1)
    storage.faults = {}
    assert steps(training.Checkpointer(storage.url)) == [1]


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE])
def test_a_fault_at_any_call_leaves_a_run_that_tells_the_truth(storage, fault):
    """Save step 3 and collect step 1; afterwards what is listed loads, and nothing is missing."""
    storage.reads = False
    url, number = storage.url, 0
    while True:
        number += 1
        storage.url, storage.faults = f"{url}-{number}", {}
        save(storage, 1, 2)
        storage.faults = {number: fault}
        checkpointer = training.Checkpointer(storage.url, preservation_policy=LatestN(2))
        acknowledged = False
        try:
            acknowledged = bool(checkpointer.save(3, state(3)))
            checkpointer.wait()
        except (SimulatedCrash, Exception):
            pass
        reached = len(storage.view.calls) >= number
        storage.faults = {}
        found = training.Checkpointer(storage.url)
        listed = steps(found)
        assert 2 in listed
        assert 3 in listed or not acknowledged
        for step in listed:
            assert found.load(step)["w"][0] == step
        if not reached:
            break
    assert number > 10
