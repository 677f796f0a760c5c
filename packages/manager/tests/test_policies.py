"""Policies by themselves: each rule, its edges, and what it refuses when it is made."""

import datetime
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from holdfast_manager.policies import preservation_policies as keep
from holdfast_manager.policies import save_decision_policies as when
from holdfast_manager.policies.info import Candidate

NOW = datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Info:
    step: int
    metrics: Any = None
    age: float = 0.0
    size_bytes: int | None = 10

    @property
    def time(self):
        return NOW - datetime.timedelta(seconds=self.age)


def infos(*steps):
    return [Info(step) for step in steps]


def kept(policy, checkpoints, **protected):
    context = keep.PreservationContext(**protected)
    answers = policy.should_preserve(checkpoints, context=context)
    return [info.step for info, answer in zip(checkpoints, answers, strict=True) if answer]


def saves(policy, step, previous=(), **context):
    return policy.should_save(
        Candidate(step), list(previous), context=when.DecisionContext(**context)
    )


def test_a_fixed_interval_divides_the_step():
    assert [step for step in range(7) if saves(when.FixedIntervalPolicy(3), step)] == [0, 3, 6]


def test_specific_steps_are_those_named():
    assert [s for s in range(9) if saves(when.SpecificStepsPolicy({2, 5}), s)] == [2, 5]
    assert [s for s in range(9) if saves(when.SpecificStepsPolicy(range(0, 9, 4)), s)] == [0, 4, 8]


def test_the_initial_save_is_one_and_not_one_for_each_step_while_it_runs():
    policy = when.InitialSavePolicy()
    assert saves(policy, 7)
    assert not saves(policy, 8, is_saving_in_progress=True)
    assert not saves(policy, 9, infos(7))


def test_continuous_saving_waits_for_the_running_save_and_the_interval():
    assert saves(when.ContinuousCheckpointingPolicy(), 3, infos(2))
    assert not saves(when.ContinuousCheckpointingPolicy(), 3, is_saving_in_progress=True)
    policy = when.ContinuousCheckpointingPolicy(minimum_interval_secs=100_000)
    assert saves(policy, 1)
    assert not saves(policy, 2, [Info(1, age=50_000)])
    assert saves(policy, 2, [Info(1, age=150_000)])


def test_an_interval_counts_on_no_clock_that_was_set_back():
    policy = when.ContinuousCheckpointingPolicy(minimum_interval_secs=100_000)
    assert saves(policy, 2, [Info(1, age=-50_000)])  # committed in the future: by another clock
    assert not saves(policy, 2, [Info(1, age=50_000)])
    assert saves(when.ContinuousCheckpointingPolicy(minimum_interval_secs=0), 2, [Info(1)])


def test_preemption_is_what_the_context_says():
    policy = when.PreemptionCheckpointingPolicy()
    assert not saves(policy, 1)
    assert saves(policy, 1, reached_preemption=True)


def test_any_save_policy_asks_every_member_and_is_an_or():
    asked = []

    class Asked:
        def should_save(self, step, previous_steps, *, context):
            asked.append(step.step)
            return True

    policy = when.AnySavePolicy([Asked(), Asked(), when.FixedIntervalPolicy(10)])
    assert saves(policy, 3)
    assert asked == [3, 3]
    assert not saves(when.AnySavePolicy([]), 0)
    either = when.AnySavePolicy([when.InitialSavePolicy(), when.FixedIntervalPolicy(10)])
    assert saves(either, 7)
    assert saves(either, 20, infos(7))
    assert not saves(either, 21, infos(7))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: when.FixedIntervalPolicy(0), ValueError, "interval is an integer >= 1, got 0"),
        (lambda: when.FixedIntervalPolicy(-5), ValueError, "got -5"),
        (lambda: when.FixedIntervalPolicy(2.5), TypeError, "float"),
        (lambda: when.FixedIntervalPolicy(True), TypeError, "bool"),
        (lambda: when.ContinuousCheckpointingPolicy(-1), ValueError, "minimum_interval_secs"),
        (lambda: when.ContinuousCheckpointingPolicy(math.nan), ValueError, "nan"),
        (lambda: when.SpecificStepsPolicy("123"), TypeError, "steps is .* got '123'"),
        (lambda: when.SpecificStepsPolicy(iter([1])), TypeError, "iterator"),
        (lambda: when.SpecificStepsPolicy([1, 2.5]), TypeError, "got 2.5, which no step"),
        (lambda: keep.CustomSteps({"3"}), TypeError, "got '3'"),
        (lambda: when.AnySavePolicy(when.InitialSavePolicy()), TypeError, "list of policies"),
        (lambda: when.AnySavePolicy([keep.PreserveAll()]), TypeError, r"policies\[0\].*All"),
        (lambda: keep.LatestN(-1), ValueError, "n is an integer >= 0 or None, got -1"),
        (lambda: keep.LatestN("2"), TypeError, "str"),
        (lambda: keep.EveryNSteps(0), ValueError, "interval_steps is an integer >= 1"),
        (lambda: keep.EveryNSteps(3, max_to_keep=-2), ValueError, "max_to_keep"),
        (lambda: keep.EveryNStepsClosest(0), ValueError, "interval_steps"),
        (lambda: keep.EveryNSeconds(-0.5), ValueError, "interval_secs"),
        (lambda: keep.CustomSteps(7), TypeError, "steps is .* got 7"),
        (lambda: keep.BestN(get_metric_fn="loss"), TypeError, "get_metric_fn"),
        (lambda: keep.BestN(get_metric_fn=len, n=-1), ValueError, "n is"),
        (lambda: keep.LatestDuration(60), TypeError, "timedelta"),
        (lambda: keep.LatestDuration(datetime.timedelta(-1)), ValueError, "timedelta"),
        (lambda: keep.DiskBudget(-1), ValueError, "max_bytes"),
        (
            lambda: keep.DiskBudget(1, keep.LatestN),
            TypeError,
            "policy is a policy, got the class LatestN: call it",
        ),
        (lambda: keep.AnyPreservationPolicy([keep.LatestN]), TypeError, r"policies\[0\]"),
    ],
)
def test_what_a_policy_cannot_use_is_refused_when_it_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_latest_n_counts_from_the_end():
    assert kept(keep.LatestN(2), infos(1, 5, 9)) == [5, 9]
    assert kept(keep.LatestN(), infos(1, 5, 9)) == [1, 5, 9]
    assert kept(keep.LatestN(9), infos(1, 5)) == [1, 5]
    assert kept(keep.LatestN(0), infos(1, 5)) == []


def test_every_n_seconds_counts_from_the_one_kept_before():
    checkpoints = [Info(i, age=100 - i * 10) for i in range(8)]
    assert kept(keep.EveryNSeconds(25), checkpoints) == [0, 3, 6]
    assert kept(keep.EveryNSeconds(0), checkpoints) == list(range(8))
    assert kept(keep.EveryNSeconds(1), []) == []


def test_a_clock_that_was_set_back_starts_the_interval_anew():
    # Step 2 was committed by a clock that was a day ahead; without it the others look alike.
    ages = [(0, 300), (1, 290), (2, -86_000), (3, 200), (4, 190), (5, 90), (6, 80)]
    checkpoints = [Info(step, age=age) for step, age in ages]
    assert kept(keep.EveryNSeconds(100), checkpoints) == [0, 2, 3, 5]


def test_every_n_steps_is_exact_or_spaced_and_limited():
    checkpoints = infos(0, 3, 4, 7, 8, 12)
    assert kept(keep.EveryNSteps(4), checkpoints) == [0, 4, 8, 12]
    assert kept(keep.EveryNSteps(4, exact_interval=False), checkpoints) == [0, 4, 8, 12]
    assert kept(keep.EveryNSteps(5, exact_interval=False), infos(2, 3, 7, 11, 12)) == [2, 7, 12]
    assert kept(keep.EveryNSteps(4, max_to_keep=2), checkpoints) == [8, 12]
    assert kept(keep.EveryNSteps(4, max_to_keep=9), checkpoints) == [0, 4, 8, 12]


def test_a_limit_of_zero_is_zero():
    assert kept(keep.EveryNSteps(4, max_to_keep=0), infos(0, 4, 8)) == []
    assert kept(keep.EveryNStepsClosest(4, max_to_keep=0), infos(0, 4, 8)) == []


def test_the_closest_to_each_multiple_stays_and_the_last():
    policy = keep.EveryNStepsClosest(10)
    assert kept(policy, infos(1, 9, 12, 18, 23, 24)) == [1, 9, 18, 24]
    assert kept(policy, infos(8, 12, 33)) == [12, 33]  # equally close: the later
    assert kept(policy, infos(5, 15, 25)) == [5, 25]  # half way: to 0, 20 and 20
    assert kept(keep.EveryNStepsClosest(10, max_to_keep=2), infos(0, 10, 20, 30)) == [20, 30]
    assert kept(policy, []) == []
    huge = 10**17
    assert kept(keep.EveryNStepsClosest(huge), infos(huge - 1, huge + 2, 2 * huge)) == [
        huge - 1,
        2 * huge,
    ]


def test_custom_steps_are_those_named():
    assert kept(keep.CustomSteps([2, 4]), infos(1, 2, 3, 4)) == [2, 4]


def by_loss(**options):
    return keep.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, **options)


def measured(*losses):
    metrics = [None if loss is None else {"loss": loss} for loss in losses]
    return [Info(step, metrics=m) for step, m in enumerate(metrics)]


def test_the_best_n_stay_and_those_that_cannot_be_ranked_if_asked():
    checkpoints = measured(3.0, 1.0, None, 2.0, 4.0)
    assert kept(by_loss(n=2), checkpoints) == [1, 2, 3]
    assert kept(by_loss(n=2, keep_checkpoints_without_metrics=False), checkpoints) == [1, 3]
    largest = keep.BestN(get_metric_fn=lambda metrics: metrics["loss"], n=1)
    assert kept(largest, checkpoints) == [2, 4]
    assert kept(by_loss(), checkpoints) == [0, 1, 2, 3, 4]
    assert kept(by_loss(n=5), checkpoints) == [0, 1, 2, 3, 4]
    assert kept(by_loss(n=0), checkpoints) == []


def test_a_metric_that_is_not_a_number_is_the_worst_either_way():
    checkpoints = measured(2.0, math.nan, 1.0, math.nan)
    assert kept(by_loss(n=2), checkpoints) == [0, 2]
    largest = keep.BestN(get_metric_fn=lambda metrics: metrics["loss"], n=2)
    assert kept(largest, checkpoints) == [0, 2]


def test_what_cannot_be_ranked_is_told_with_its_step_and_its_metrics():
    checkpoints = [*measured(1.0, 2.0), Info(2, metrics={"accuracy": 0.5})]
    with pytest.raises(ValueError, match=r"no number for step 2, .*accuracy.*: KeyError: 'loss'"):
        kept(by_loss(n=1), checkpoints)
    with pytest.raises(ValueError, match="step 0, .* TypeError"):
        kept(keep.BestN(get_metric_fn=lambda metrics: metrics, n=1), checkpoints)
    assert kept(by_loss(n=3), checkpoints) == [0, 1, 2]  # not asked


def test_numbers_of_numpy_and_infinities_are_ranked():
    checkpoints = measured(np.float32(1), -math.inf, np.array(2.0), math.inf, np.int64(0))
    assert kept(by_loss(n=2), checkpoints) == [1, 4]
    largest = keep.BestN(get_metric_fn=lambda metrics: metrics["loss"], n=2)
    assert kept(largest, checkpoints) == [2, 3]


def test_of_equally_good_ones_the_later_stays():
    assert kept(by_loss(n=1), measured(1.0, 1.0, 2.0)) == [1]


def test_the_latest_duration_keeps_from_the_first_young_one_on():
    policy = keep.LatestDuration(datetime.timedelta(days=1))
    # Clocks of writers differ: what comes after a young one stays, whatever it says.
    checkpoints = [Info(1, age=300_000), Info(2, age=30_000), Info(3, age=200_000), Info(4)]
    assert kept(policy, checkpoints) == [2, 3, 4]
    assert kept(policy, [Info(1, age=300_000)]) == []


def test_a_clock_ahead_counts_as_young_and_one_behind_is_kept_after_a_young_one():
    policy = keep.LatestDuration(datetime.timedelta(hours=1))
    assert kept(policy, [Info(1, age=9_000), Info(2, age=-9_000), Info(3, age=9_000)]) == [2, 3]
    assert kept(keep.LatestDuration(datetime.timedelta(0)), [Info(1, age=5)]) == []


def test_a_disk_budget_keeps_the_newest_that_fit_together():
    checkpoints = [Info(step, size_bytes=size) for step, size in enumerate([1, 50, 10, 20, 10])]
    assert kept(keep.DiskBudget(40), checkpoints) == [2, 3, 4]
    assert kept(keep.DiskBudget(35), checkpoints) == [3, 4]  # 0 would fit, but is older
    assert kept(keep.DiskBudget(0), checkpoints) == []
    assert kept(keep.DiskBudget(10**9), checkpoints) == [0, 1, 2, 3, 4]


def test_a_disk_budget_is_used_up_by_what_stays_anyway():
    checkpoints = infos(0, 1, 2, 3)
    protected = {"protected": {0: ["pinned"], 3: ["newest"]}}
    assert kept(keep.DiskBudget(30), checkpoints, **protected) == [0, 2, 3]
    assert kept(keep.DiskBudget(20), checkpoints, **protected) == [0, 3]


def test_a_disk_budget_bounds_another_policy():
    policy = keep.DiskBudget(20, keep.EveryNSteps(2))
    assert kept(policy, infos(0, 1, 2, 3, 4, 5)) == [2, 4]


def test_a_step_of_unknown_size_stays():
    checkpoints = [Info(0, size_bytes=None), Info(1), Info(2)]
    assert kept(keep.DiskBudget(10), checkpoints) == [0, 2]


def test_any_preservation_policy_is_an_or_and_without_members_keeps_nothing():
    checkpoints = infos(0, 1, 2, 3, 4)
    policy = keep.AnyPreservationPolicy([keep.LatestN(1), keep.EveryNSteps(2)])
    assert kept(policy, checkpoints) == [0, 2, 4]
    assert keep.AnyPreservationPolicy([]).should_preserve(checkpoints) == [False] * 5
    assert keep.AnyPreservationPolicy([]).should_preserve([]) == []
    assert policy.should_preserve([]) == []
