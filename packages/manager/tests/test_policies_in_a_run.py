"""Policies as a run asks them: what `explain` says is what is done, and odd answers do no harm."""

import datetime
import time
import types
import uuid

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.policies import preservation_policies as keep
from holdfast_manager.policies import save_decision_policies as when


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


@pytest.fixture
def run_url():
    """A run where the storage makes no difference."""
    return f"memory://policies-{uuid.uuid4().hex}/run"


def save(place, *numbers, **options):
    with training.Checkpointer(place, **options) as run:
        for number in numbers:
            assert run.save(number, state(number), metrics={"loss": float(number % 5)})


def loss(metrics):
    return metrics["loss"]


STEPS = (1, 2, 5, 6, 10, 13)  # losses 1, 2, 0, 1, 0, 3
RULES = {
    keep.PreserveAll(): STEPS,
    keep.LatestN(): STEPS,
    keep.LatestN(2): (10, 13),
    keep.LatestN(0): (13,),
    keep.EveryNSeconds(0): STEPS,
    keep.EveryNSeconds(3600): (1, 13),
    keep.EveryNSteps(5): (5, 10, 13),
    keep.EveryNSteps(5, max_to_keep=1): (10, 13),
    keep.EveryNSteps(5, max_to_keep=0): (13,),
    keep.EveryNSteps(4, exact_interval=False): (1, 5, 10, 13),
    keep.EveryNStepsClosest(4): (1, 5, 10, 13),
    keep.EveryNStepsClosest(10): (1, 10, 13),
    keep.EveryNStepsClosest(10, max_to_keep=0): (13,),
    keep.CustomSteps(range(2, 7)): (2, 5, 6, 13),
    keep.BestN(get_metric_fn=loss, n=2): (2, 13),
    keep.BestN(get_metric_fn=loss, reverse=True, n=2): (5, 10, 13),
    keep.BestN(get_metric_fn=loss): STEPS,
    keep.BestN(get_metric_fn=loss, n=0): (13,),
    keep.LatestDuration(datetime.timedelta(hours=1)): STEPS,
    keep.LatestDuration(datetime.timedelta(0)): (13,),
    keep.DiskBudget(10**9): STEPS,
    keep.DiskBudget(0): (13,),
    keep.DiskBudget(10**9, keep.EveryNSteps(5)): (5, 10, 13),
    keep.AnyPreservationPolicy([]): (13,),
    keep.AnyPreservationPolicy([keep.LatestN(2), keep.EveryNSteps(5)]): (5, 10, 13),
}


@pytest.mark.parametrize(
    "policy", RULES, ids=[f"{type(p).__name__}-{number}" for number, p in enumerate(RULES)]
)
def test_what_explain_says_is_what_the_next_commit_does(policy, run_url):
    save(run_url, *STEPS)
    with training.Checkpointer(run_url, preservation_policy=policy) as run:
        told = run.explain()
        assert [verdict.step for verdict in told] == list(STEPS)
        assert tuple(verdict.step for verdict in told if verdict) == RULES[policy]
        assert all(repr(policy) in verdict.reasons[0] for verdict in told if not verdict)
        assert tuple(steps(training.Checkpointer(run_url))) == STEPS  # nothing was done
        # A commit that adds no step: the newest, once more.
        assert run.save(13, state(14), overwrite=True, metrics={"loss": 3.0})
        run.wait()
        assert tuple(steps(run)) == tuple(steps(training.Checkpointer(run_url))) == RULES[policy]
        assert all(run.explain())


def test_a_decision_and_its_explanation_are_one_for_each_policy(run_url):
    policies = [
        (when.FixedIntervalPolicy(4), [4, 8]),
        (when.SpecificStepsPolicy({3, 5}), [3, 5]),
        (when.InitialSavePolicy(), [1]),
        (when.ContinuousCheckpointingPolicy(), list(range(1, 9))),
        (when.ContinuousCheckpointingPolicy(minimum_interval_secs=3600), [1]),
        (when.PreemptionCheckpointingPolicy(), []),
        (when.AnySavePolicy([]), []),
        (when.AnySavePolicy([when.InitialSavePolicy(), when.FixedIntervalPolicy(5)]), [1, 5]),
    ]
    for number, (policy, expected) in enumerate(policies):
        with training.Checkpointer(f"{run_url}-{number}", save_decision_policy=policy) as run:
            for step in range(1, 9):
                would = run.should_save(step)
                saved = run.save(step, state(step))
                assert bool(saved) == would == (step in expected)
                assert repr(policy) in saved.reason or would
            assert steps(run) == expected


def test_the_interval_counts_from_the_commit_before_a_restart_and_after(run_url, monkeypatch):
    clock = types.SimpleNamespace(now=time.time())
    clock.time = lambda: clock.now
    monkeypatch.setattr(when, "time", clock)
    policy = when.ContinuousCheckpointingPolicy(minimum_interval_secs=1000)

    def opened():
        return training.Checkpointer(run_url, save_decision_policy=policy)

    with opened() as run:
        assert run.save(1, state(1))
        committed = run.latest.commit_timestamp_nsecs / 1e9
        for again in (run, opened()):
            clock.now = committed + 999
            assert not again.should_save(2)
            clock.now = committed + 1001
            assert again.should_save(2)
            clock.now = committed - 5000  # set back: nobody waits for hours
            assert again.should_save(2)


def test_the_latest_is_the_newest_step_whatever_was_saved_last(place):
    with training.Checkpointer(place) as run:
        assert run.save(5, state(5))
        assert run.save(3, state(3), force=True)
        for again in (run, training.Checkpointer(place)):
            assert again.latest.step == 5
            assert again.load()["w"][0] == 5
            assert not again.should_save(4)
            assert "not newer than the latest, 5" in again.save(4, state(4)).reason
        assert run.save(6, state(6))


class Answers:
    """A policy of a user's, for both questions."""

    def __init__(self, answer):
        self.answer = answer

    def __repr__(self):
        return "Answers()"

    def should_save(self, step, previous_steps, *, context):
        return self.answer(step)

    def should_preserve(self, checkpoints, *, context):
        return self.answer(checkpoints)


@pytest.mark.parametrize(
    "kind",
    [bool, np.bool_, int, np.array, lambda answer: answer or None],
    ids=["bool", "numpy", "int", "array", "none"],
)
def test_the_bools_of_numpy_are_answers_and_none_is_no(run_url, kind):
    policy = Answers(lambda info: kind(info.step == 2))
    with training.Checkpointer(run_url, save_decision_policy=policy) as run:
        assert not run.save(1, state(1))
        assert run.save(2, state(2))
        assert not run.should_save(3)


def test_an_answer_that_is_none_of_both_is_refused_and_nothing_written(run_url):
    for answer in ("yes", 2, np.array([True, False]), object()):
        policy = Answers(lambda info, answer=answer: answer)
        with training.Checkpointer(run_url, save_decision_policy=policy) as run:
            for ask in (lambda r: r.should_save(1), lambda r: r.save(1, state(1))):
                with pytest.raises(TypeError, match=r"Answers\(\) answers True or False, and gave"):
                    ask(run)
            assert steps(training.Checkpointer(run_url)) == []


def test_the_error_of_a_save_policy_reaches_the_caller_and_the_next_save_works(run_url):
    trouble = [ZeroDivisionError("mine")]

    def answer(info):
        if trouble:
            raise trouble.pop()
        return True

    with training.Checkpointer(run_url, save_decision_policy=Answers(answer)) as run:
        with pytest.raises(ZeroDivisionError, match="mine"):
            run.save(1, state(1))
        assert steps(training.Checkpointer(run_url)) == []
        assert run.save(1, state(1))


@pytest.mark.parametrize(
    "shape",
    [list, tuple, np.array, iter, lambda kept: (np.bool_(k) for k in kept)],
    ids=["list", "tuple", "array", "iterator", "generator"],
)
def test_answers_come_in_any_shape(run_url, shape):
    policy = Answers(lambda checkpoints: shape([info.step == 1 for info in checkpoints]))
    save(run_url, 1, 2, 3, preservation_policy=policy)
    assert steps(training.Checkpointer(run_url)) == [1, 3]
    both = keep.AnyPreservationPolicy([policy, keep.DiskBudget(10**9, policy)])
    save(run_url, 4, preservation_policy=both)
    assert steps(training.Checkpointer(run_url)) == [1, 4]


@pytest.mark.parametrize(
    ("answer", "error", "told"),
    [
        (lambda checkpoints: [False], ValueError, "gave 1 answers about 3 checkpoints"),
        (lambda checkpoints: [False] * 4, ValueError, "gave 4 answers about 3"),
        (lambda checkpoints: False, ValueError, "gave 1 answers about 3"),
        (lambda checkpoints: None, ValueError, "gave 1 answers about 3"),
        (lambda checkpoints: [], ValueError, "gave 0 answers about 3"),
        (lambda checkpoints: [None] * 3, TypeError, "answers True or False, and gave None"),
        (lambda checkpoints: np.zeros((3, 2)), TypeError, "answers True or False"),
        (lambda checkpoints: checkpoints[9], IndexError, "index"),
    ],
    ids=["one", "four", "scalar", "none", "empty", "nones", "table", "raises"],
)
def test_a_preservation_policy_that_does_not_answer_removes_nothing(
    run_url, caplog, answer, error, told
):
    policy = Answers(answer)
    save(run_url, 1, 2)
    save(run_url, 3, preservation_policy=policy)
    assert steps(training.Checkpointer(run_url)) == [1, 2, 3]
    assert "could not remove old steps" in caplog.text
    for member in (policy, keep.AnyPreservationPolicy([keep.LatestN(0), policy])):
        with pytest.raises(error, match=told):
            training.Checkpointer(run_url, preservation_policy=member).explain()


def test_a_policy_that_fails_at_every_save_shows_its_traceback_once(run_url, caplog):
    with training.Checkpointer(
        run_url, preservation_policy=Answers(lambda found: [None] * len(found))
    ) as run:
        for step in (1, 2, 3):
            run.save(step, {"step": step}, force=True)
            run.wait()
    told = [record for record in caplog.records if "could not remove" in record.message]
    assert len(told) > 1
    assert all("TypeError: " in record.message for record in told)
    assert [bool(record.exc_info) for record in told] == [True] + [False] * (len(told) - 1)


def test_what_is_no_policy_is_refused_by_the_name_of_its_argument(run_url):
    with pytest.raises(TypeError, match=r"preservation_policy is a policy, .* got 3$"):
        training.Checkpointer(run_url, preservation_policy=3)
    with pytest.raises(TypeError, match=r"got the class LatestN: call it, as LatestN\(\.\.\.\)"):
        training.Checkpointer(run_url, preservation_policy=keep.LatestN)


def test_a_metric_that_is_missing_removes_nothing_and_is_told(place, caplog):
    best = keep.BestN(get_metric_fn=loss, n=1)
    save(place, 1, 2)
    with training.Checkpointer(place, preservation_policy=best) as run:
        assert run.save(3, state(3), metrics={"accuracy": 1.0})
        run.wait()
        assert steps(run) == [1, 2, 3]
        assert "no number for step 3" in caplog.text
        with pytest.raises(ValueError, match="no number for step 3"):
            run.explain()
        assert run.save(4, state(4))  # without metrics: kept, and not ranked
        run.delete(3)
        assert run.save(5, state(5))
        run.wait()
        assert steps(run) == [2, 4, 5]


def test_policies_see_what_is_committed_and_the_step_that_is_asked_about(run_url):
    seen = []

    class Watching:
        def should_save(self, step, previous_steps, *, context):
            seen.append((step.step, step.metrics, [info.step for info in previous_steps]))
            assert step.time.tzinfo is not None
            assert all(info.time <= step.time for info in previous_steps)
            assert context.reached_preemption is False
            return True

        def should_preserve(self, checkpoints, *, context):
            seen.append([(info.step, info.metrics) for info in checkpoints])
            assert checkpoints[-1].step in context.protected
            return [True] * len(checkpoints)

    policy = Watching()
    with training.Checkpointer(
        run_url, save_decision_policy=policy, preservation_policy=policy
    ) as run:
        for step in (1, 2):
            run.save(step, state(step), metrics={"loss": float(step)})
            run.wait()
    one, two = (1, {"loss": 1.0}), (2, {"loss": 2.0})
    assert seen == [(*one, []), [one], (*two, [1]), [one, two]]


def test_what_a_policy_does_to_its_arguments_stays_there(run_url):
    class Vandal:
        def should_save(self, step, previous_steps, *, context):
            previous_steps.clear()
            return True

        def should_preserve(self, checkpoints, *, context):
            answers = [True] * len(checkpoints)
            checkpoints.clear()
            return answers

    save(run_url, 1, 2)
    vandal = Vandal()
    with training.Checkpointer(
        run_url, save_decision_policy=vandal, preservation_policy=vandal
    ) as run:
        assert run.save(3, state(3))
        run.wait()
        assert steps(run) == [1, 2, 3]
