"""What a run does with steps that are there and not good: nothing counts them."""

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.errors import (
    StepAlreadyExistsError,
    StepNotFoundError,
    StepNotQuarantinedError,
    StepPinnedError,
)
from holdfast_manager.policies.preservation_policies import BestN, LatestN
from holdfast_storage import get_loop, open_backend
from holdfast_storage.errors import DamagedCheckpointError


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def ask(coroutine):
    return get_loop().run(coroutine)


def tree_of(place, step):
    backend = open_backend(place)

    async def find():
        return [i.key async for i in backend.walk(str(step)) if i.key.endswith("_TREE.json")]

    return backend, ask(find())[0]


def damage(place, step):
    backend, key = tree_of(place, step)
    content = ask(backend.get(key))
    ask(backend.put(key, content[:-2] + b" }"))
    return lambda: ask(backend.put(key, content))


def tear(place, step):
    backend, key = tree_of(place, step)
    ask(backend.delete(key))


def marks(place):
    listing = ask(open_backend(place).children("_quarantine"))
    return [info.key.rpartition("/")[2] for info in listing.objects]


def save(place, *numbers, policy=None):
    with training.Checkpointer(place, preservation_policy=policy) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def quarantine(place, *bad, good=(1, 2)):
    """A run of which steps are found damaged."""
    save(place, *good, *bad)
    repairs = [damage(place, step) for step in bad]
    training.Checkpointer(place).load(fallback=True)
    assert marks(place) == [str(step) for step in bad]
    return repairs


def test_a_policy_keeps_as_many_good_steps_as_it_says(place):
    quarantine(place, 3)
    with training.Checkpointer(place, preservation_policy=LatestN(2)) as run:
        assert steps(run) == [1, 2]
        said = {verdict.step: verdict for verdict in run.explain()}
        assert list(said) == [1, 2, 3]
        assert said[3].kept
        assert "it is damaged and no policy counts it" in said[3].reasons[0]
        run.save(4, state(4))
        run.wait()
        assert (steps(run), list(run.quarantined)) == ([2, 4], [3])  # 2 stays: 3 is no good one
        run.save(5, state(5))
        run.wait()
        # Everything that stays is newer than the evidence, which goes.
        assert (steps(run), list(run.quarantined)) == ([4, 5], [])
    assert marks(place) == []
    assert [verdict.step for verdict in training.Checkpointer(place).explain()] == [4, 5]


def test_the_best_is_a_good_one_and_its_metrics_are_not_asked_of_a_damaged_one(place):
    best = BestN(get_metric_fn=lambda metrics: metrics["loss"], n=1, reverse=True)
    with training.Checkpointer(place) as run:
        for step, loss in [(1, 3), (2, 2), (3, 1)]:
            run.save(step, state(step), metrics={"loss": loss})
    damage(place, 3)
    with training.Checkpointer(place, preservation_policy=best) as run:
        assert run.best.step == 3
        run.load(fallback=True)
        assert (run.best.step, run.latest.step) == (2, 2)
        run.save(4, state(4), metrics={"loss": 9})
        run.wait()
        assert (steps(run), list(run.quarantined)) == ([2, 4], [3])


def test_by_its_number_a_quarantined_step_can_be_had(place):
    (repair,) = quarantine(place, 3)
    run = training.Checkpointer(place)
    assert run.latest.step == 2
    with pytest.raises(DamagedCheckpointError):
        run.load(3)
    run.pin(3, "evidence")
    with pytest.raises(StepPinnedError):
        run.delete(3)
    with pytest.raises(StepPinnedError):
        run.save(3, state(3))
    run.unpin("evidence")
    assert list(run.quarantined) == [3]
    repair()
    np.testing.assert_array_equal(run.load(3)["w"], state(3)["w"])
    run.reload()  # the files have changed: nothing is said of them
    assert (steps(run), dict(run.quarantined)) == ([1, 2, 3], {})
    run.close()


def test_a_deleted_step_takes_its_mark_with_it(place):
    quarantine(place, 3)
    with training.Checkpointer(place) as run:
        assert run.delete(3)
        assert run.quarantined == {}
    assert marks(place) == []
    with pytest.raises(StepNotFoundError, match="step 3"):
        training.Checkpointer(place).load(3)


def test_a_mark_can_be_taken_away(place):
    quarantine(place, 3, 4)
    run = training.Checkpointer(place)
    run.unquarantine(4)
    assert (steps(run), list(run.quarantined), marks(place)) == ([1, 2, 4], [3], ["3"])
    with pytest.raises(StepNotQuarantinedError, match="quarantined steps: 3"):
        run.unquarantine(4)
    run.load(fallback=True)  # it is damaged still
    assert list(run.quarantined) == [3, 4]


def test_marks_of_other_attempts_say_nothing_and_a_writer_removes_them(place):
    quarantine(place, 3)
    backend = open_backend(place)
    mark = ask(backend.get("_quarantine/3"))
    with training.Checkpointer(place) as run:
        run.save(3, state(3))
    ask(backend.put("_quarantine/3", mark))
    ask(backend.put("_quarantine/2", mark))
    ask(backend.put("_quarantine/1", b"no mark"))
    fresh = training.Checkpointer(place)
    assert (steps(fresh), dict(fresh.quarantined)) == ([1, 2, 3], {})
    fresh.save(4, state(4))
    fresh.close()
    assert marks(place) == ["1"]  # what cannot be read is not judged


def test_a_newest_step_that_opening_finds_torn_is_saved_anew_without_more_words(place):
    save(place, 1, 2)
    tear(place, 2)
    with training.Checkpointer(place) as run:
        assert (run.latest.step, run.quarantined[2].problem) == (1, "incomplete")
        assert marks(place) == []
        assert run.should_save(2)
        assert run.save(2, state(2))
        assert run.latest.step == 2
        with pytest.raises(StepAlreadyExistsError):
            run.save(2, state(2))
    np.testing.assert_array_equal(training.Checkpointer(place).load()["w"], state(2)["w"])


def test_a_torn_step_that_is_passed_by_is_not_counted_later(place):
    """Opening looks at the newest only, so the writer marks what it knows."""
    save(place, 1, 2)
    tear(place, 2)
    with training.Checkpointer(place) as run:
        run.save(3, state(3))
        run.wait()
    assert marks(place) == ["2"]
    with training.Checkpointer(place, preservation_policy=LatestN(2)) as run:
        assert (steps(run), list(run.quarantined)) == ([1, 3], [2])
        run.save(4, state(4))
        run.wait()
        assert (steps(run), list(run.quarantined)) == ([3, 4], [])


def test_a_torn_step_whose_copy_went_on_is_never_replaced_unasked(place):
    save(place, 1, 2)
    backend, key = tree_of(place, 2)
    content = ask(backend.get(key))
    ask(backend.delete(key))
    run = training.Checkpointer(place)
    assert list(run.quarantined) == [2]
    ask(backend.put(key, content))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        run.save(2, state(7))
    np.testing.assert_array_equal(training.Checkpointer(place).load()["w"], state(2)["w"])
    run.close()


def test_evidence_that_was_repaired_is_not_collected_as_evidence(place):
    save(place, 0)
    repair = quarantine(place, 3, good=(1, 2))[0]
    with training.Checkpointer(place, preservation_policy=LatestN(1)) as run:
        run.empty_trash()  # its first write, at which it looks again
        repair()  # after that: it knows the step as damaged
        assert list(run.quarantined) == [3]
        run.save(4, state(4))
        run.wait()
        assert (steps(run), dict(run.quarantined)) == ([3, 4], {})
        run.save(5, state(5))
        run.wait()
        assert steps(run) == [5]


def test_a_quarantined_step_comes_back_from_the_trash_as_one(place):
    with training.Checkpointer(place, trash=training.Trash()) as run:
        for step in (1, 2, 3):
            run.save(step, state(step))
        damage(place, 3)
        run.load(fallback=True)
        assert run.delete(3)
        run.wait()
        run.sweep()  # whose mark is not one of a step that is gone
        run.restore_from_trash(3)
        assert list(run.quarantined) == [3]
        assert run.latest.step == 2
    again = training.Checkpointer(place)
    assert list(again.quarantined) == [3]
    assert again.latest.step == 2
