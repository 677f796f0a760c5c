"""The policies that a manager's options stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast_manager.checkpoint_manager.options import CheckpointManagerOptions
from holdfast_manager.policies.info import PolicyCheckpointInfo
from holdfast_manager.policies.preservation_policies import (
    AnyPreservationPolicy,
    BestN,
    EveryNSeconds,
    EveryNSteps,
    LatestN,
    PreservationPolicy,
    PreserveAll,
)
from holdfast_manager.policies.save_decision_policies import (
    AnySavePolicy,
    DecisionContext,
    FixedIntervalPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
    SpecificStepsPolicy,
)


@dataclass(frozen=True)
class ShouldSave:
    """Asks a function of the step and the latest one, which may still be in the making."""

    function: Callable[[int, int | None], bool]

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """What the function says."""
        latest = context.saving_step
        if previous_steps and (latest is None or latest < previous_steps[-1].step):
            latest = previous_steps[-1].step
        return bool(self.function(step.step, latest))


@dataclass(frozen=True)
class AsIfIdle:
    """Asks a policy as if no save were under way."""

    policy: SaveDecisionPolicy

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """What the policy says."""
        idle = dataclasses.replace(context, is_saving_in_progress=False, saving_step=None)
        return self.policy.should_save(step, previous_steps, context=idle)


def when_to_save(options: CheckpointManagerOptions) -> SaveDecisionPolicy:
    """When to save. The first step of a run is saved unless something else was given."""
    if options.read_only:
        return AnySavePolicy([])
    if options.save_decision_policy is not None:
        asks = options.enable_should_save_is_saving_in_progress_check
        policy = options.save_decision_policy
        return policy if asks else AsIfIdle(policy)
    if options.should_save_fn is not None:
        return AnySavePolicy([ShouldSave(options.should_save_fn), PreemptionCheckpointingPolicy()])
    policies: list[SaveDecisionPolicy] = []
    if options.save_interval_steps is not None:
        policies.append(FixedIntervalPolicy(options.save_interval_steps))
    if options.save_on_steps is not None:
        policies.append(SpecificStepsPolicy(options.save_on_steps))
    return AnySavePolicy([*policies, PreemptionCheckpointingPolicy(), InitialSavePolicy()])


def what_to_keep(options: CheckpointManagerOptions) -> PreservationPolicy:
    """What to keep; the newest committed step stays whatever it says."""
    if options.read_only:
        return PreserveAll()
    if options.preservation_policy is not None:
        return options.preservation_policy
    policies: list[PreservationPolicy] = []
    if options.keep_period is not None:
        policies.append(EveryNSteps(options.keep_period))
    if options.keep_time_interval is not None:
        policies.append(EveryNSeconds(options.keep_time_interval.total_seconds()))
    ranking = best_first(options)
    policies.append(LatestN(options.max_to_keep) if ranking is None else ranking)
    return AnyPreservationPolicy(policies)


def best_first(options: CheckpointManagerOptions) -> BestN | None:
    """How steps are ranked; None if no option says which is the best."""
    if options.best_fn is None:
        return None
    return BestN(
        get_metric_fn=options.best_fn,
        reverse=options.best_mode == "min",
        n=options.max_to_keep,
        keep_checkpoints_without_metrics=options.keep_checkpoints_without_metrics,
    )
