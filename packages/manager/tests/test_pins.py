"""Pins and explanations: what stays whatever a policy says, and why."""

import asyncio

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.engine.holds import Holds
from holdfast_manager.errors import (
    PinExistsError,
    PinNotFoundError,
    StepNotFoundError,
    StepPinnedError,
)
from holdfast_manager.policies.preservation_policies import (
    AnyPreservationPolicy,
    BestN,
    CustomSteps,
    DiskBudget,
    LatestN,
)
from holdfast_manager.run_directory import RunDirectory
from holdfast_storage import get_loop, open_backend
from holdfast_storage.errors import StorageTimeoutError
from holdfast_storage.testing.faulty import Fault, FaultyBackend


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def save(place, *numbers, policy=None):
    with training.Checkpointer(place, preservation_policy=policy) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def test_no_policy_of_any_process_collects_a_pinned_step(place):
    save(place, 1, 2, 3)
    with training.Checkpointer(place) as reader:
        reader.pin(1, "paper")
        reader.pin(1, "also")
        reader.pin(reader.checkpoints[1], "demo")
        assert reader.pins == {"paper": 1, "also": 1, "demo": 2}
    save(place, 4, 5, policy=LatestN(1))
    with training.Checkpointer(place, preservation_policy=LatestN(1)) as again:
        assert steps(again) == [1, 2, 5]
        again.unpin("also")
        again.save(6, state(6))
        again.wait()
        assert steps(again) == [1, 2, 6]
        again.unpin("paper")
        again.save(7, state(7))
        again.wait()
        assert steps(again) == [2, 7]
        assert again.load(2)["w"][0] == 2


def test_a_pin_of_the_same_name_is_refused_unless_it_is_the_same(place):
    save(place, 1, 2)
    checkpointer = training.Checkpointer(place)
    checkpointer.pin(1, "x")
    checkpointer.pin(1, "x")
    with pytest.raises(PinExistsError, match="holds step 1; unpin it first"):
        checkpointer.pin(2, "x")
    assert checkpointer.pins == {"x": 1}


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "_collecting", "_x", 3])
def test_what_cannot_name_a_pin_is_refused(place, name):
    save(place, 1)
    checkpointer = training.Checkpointer(place)
    with pytest.raises(ValueError, match="cannot name a pin"):
        checkpointer.pin(1, name)
    assert checkpointer.pins == {}


def test_what_is_not_there_cannot_be_pinned_or_unpinned(place):
    save(place, 1)
    checkpointer = training.Checkpointer(place)
    with pytest.raises(StepNotFoundError, match="committed steps: 1"):
        checkpointer.pin(2, "x")
    checkpointer.pin(1, "there")
    with pytest.raises(PinNotFoundError, match=r"no pin 'x'; its pins: 'there' \(step 1\)"):
        checkpointer.unpin("x")


def test_a_pinned_step_is_neither_deleted_nor_replaced(place):
    save(place, 1, 2)
    with training.Checkpointer(place) as checkpointer:
        checkpointer.pin(2, "paper")
        with pytest.raises(StepPinnedError, match="pinned as 'paper'"):
            checkpointer.delete(2)
        with pytest.raises(StepPinnedError, match="unpin it first"):
            checkpointer.save(2, state(99), overwrite=True)
        assert steps(checkpointer) == [1, 2]
        assert checkpointer.load(2)["w"][0] == 2
        checkpointer.unpin("paper")
        assert checkpointer.save(2, state(99), overwrite=True)
        assert checkpointer.load(2)["w"][0] == 99


def test_nothing_is_collected_while_a_pin_cannot_be_read(place, caplog):
    save(place, 1, 2)
    get_loop().run(open_backend(place).put("_pins/odd", b"{"))
    save(place, 3, policy=LatestN(1))
    assert steps(training.Checkpointer(place)) == [1, 2, 3]
    assert "could not remove old steps" in caplog.text


def test_a_pin_set_at_any_moment_of_a_removal_is_respected_or_refused(place):
    """Whatever call of the remover it comes before: never pinned and gone."""
    point, outcomes = 0, set()
    while True:
        point += 1
        url = f"{place}-{point}"
        save(url, 1, 2)
        done, pinned = get_loop().run(remove_with_a_pin_at(url, point))
        there = steps(training.Checkpointer(url))
        assert pinned == (1 in there)
        outcomes.add(pinned)
        if done:
            break
    assert outcomes == {True, False}


async def remove_with_a_pin_at(url, point):
    """Pauses a removal of step 1 before its mutating call `point`, and pins meanwhile."""
    plain = open_backend(url)
    view = FaultyBackend(plain, {point: Fault.PAUSE})
    run = RunDirectory(view)
    pins = Holds(RunDirectory(plain), pause_s=0.001).pins
    entry = run.describe(1, None, "1")

    async def remove():
        async with Holds(run).removing([entry.name]) as held:
            if entry.step not in held:
                await (await run.uncommit(entry))()

    async def pin():
        try:
            await pins.pin(entry, "x")
        except StepNotFoundError:
            return False
        return True

    removing = asyncio.ensure_future(remove())
    reached = asyncio.ensure_future(view.reached.wait())
    await asyncio.wait([removing, reached], return_when=asyncio.FIRST_COMPLETED)
    pinning = asyncio.ensure_future(pin())
    await asyncio.wait([pinning], timeout=0.02)
    view.resume.set()
    await removing
    done = not reached.done()
    reached.cancel()
    return done, await pinning


def test_a_remover_that_died_is_told_apart_and_forgotten_by_the_next(place):
    save(place, 1, 2)

    async def die_while_removing():
        run = RunDirectory(open_backend(place))
        removal = Holds(run).removing(["1"])
        await removal.__aenter__()
        with pytest.raises(StorageTimeoutError, match="about to be removed"):
            await Holds(run, patience_s=0.01, pause_s=0.001).pins.pin(
                run.describe(1, None, "1"), "x"
            )
        return removal

    get_loop().run(die_while_removing())
    assert training.Checkpointer(place).pins == {}
    save(place, 3, 4, policy=LatestN(1))
    reader = training.Checkpointer(place)
    assert steps(reader) == [4]
    reader.pin(4, "x")


def test_explain_names_the_rule_for_each_step_and_does_nothing(place):
    save(place, 1, 2, 3, 4)
    policy = AnyPreservationPolicy([LatestN(2), CustomSteps([1])])
    checkpointer = training.Checkpointer(place, preservation_policy=policy)
    checkpointer.pin(2, "paper")
    verdicts = checkpointer.explain()
    assert [verdict.step for verdict in verdicts] == [1, 2, 3, 4]
    assert [bool(verdict) for verdict in verdicts] == [True] * 4
    assert verdicts[0].reasons == ("CustomSteps(steps=[1]) keeps it",)
    assert verdicts[1].reasons == ("it is pinned as 'paper'",)
    assert verdicts[2].reasons == ("LatestN(n=2) keeps it",)
    assert verdicts[3].reasons == ("it is the newest committed step", "LatestN(n=2) keeps it")
    checkpointer.unpin("paper")
    gone = checkpointer.explain()[1]
    assert not gone.kept
    assert gone.reasons == (f"{policy!r} does not keep it",)
    assert steps(training.Checkpointer(place)) == [1, 2, 3, 4]


def test_explain_foretells_what_the_next_collection_does(place):
    policies = [LatestN(0), CustomSteps([0, 3]), DiskBudget(1), DiskBudget(10**9)]
    for index, policy in enumerate(policies):
        run = f"{place}-{index}"
        save(run, 0, 1, 2, 3)
        with training.Checkpointer(run, preservation_policy=policy) as checkpointer:
            checkpointer.pin(1, "x")
            assert checkpointer.save(4, state(4))
            checkpointer.wait()
            assert all(checkpointer.explain())  # what was to go is gone
            expected = {0: [1, 4], 1: [0, 1, 3, 4], 2: [1, 4], 3: [0, 1, 2, 3, 4]}[index]
            assert steps(checkpointer) == expected


def test_a_best_policy_never_loses_the_newest_and_best_says_which_is_best(place):
    policy = BestN(get_metric_fn=lambda metrics: metrics["accuracy"], n=1)
    with training.Checkpointer(place, preservation_policy=policy) as checkpointer:
        assert checkpointer.best is None
        for step, accuracy in enumerate([0.5, 0.9, 0.7, 0.6]):
            checkpointer.save(step, state(step), metrics={"accuracy": accuracy})
        checkpointer.wait()
        assert steps(checkpointer) == [1, 3]
        assert checkpointer.best.step == 1
        assert checkpointer.latest.step == 3
    with training.Checkpointer(place) as without:
        assert without.best is None


def test_a_policy_that_answers_for_other_steps_removes_nothing(place, caplog):
    class Confused:
        def should_preserve(self, checkpoints, *, context):
            return [False]

    save(place, 1, 2)
    save(place, 3, policy=Confused())
    assert steps(training.Checkpointer(place)) == [1, 2, 3]
    assert "gave 1 answers about 3 checkpoints" in caplog.text
    with pytest.raises(ValueError, match="gave 1 answers"):
        training.Checkpointer(place, preservation_policy=Confused()).explain()


def test_sizes_are_those_of_all_files(place):
    save(place, 1)
    entry = training.Checkpointer(place).latest
    assert 300 < entry.size_bytes < 100_000


def test_a_pin_that_is_said_again_during_a_removal_is_not_taken_back(place):
    save(place, 1, 2)

    async def pin_twice():
        run = RunDirectory(open_backend(place))
        pins = Holds(run, patience_s=0.01, pause_s=0.001).pins
        await pins.pin(run.describe(1, None, "1"), "paper")
        async with Holds(run).removing(["1"]) as held:
            assert 1 in held  # the remover spares the step
            with pytest.raises(StorageTimeoutError, match="about to be removed"):
                await pins.pin(run.describe(1, None, "1"), "paper")
        return await pins.read()

    assert get_loop().run(pin_twice()) == {"paper": 1}
