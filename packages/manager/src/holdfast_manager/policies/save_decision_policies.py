"""When to save. A policy is asked once per step and answers yes or no.

Before any policy is asked, a step that is not newer than the latest is declined; `force`
bypasses policies altogether. What a policy cannot use is refused when it is made.
"""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from holdfast_checkpointer.options import MultiprocessingOptions
from holdfast_manager.policies.checks import (
    check_integer,
    check_policies,
    check_seconds,
    check_steps,
)
from holdfast_manager.policies.info import PolicyCheckpointInfo, seconds


@dataclass(frozen=True)
class DecisionContext:
    """What a policy may consider besides the steps.

    Attributes:
        is_saving_in_progress: Whether an earlier save still runs.
        reached_preemption: Whether JAX's preemption service says that this is the step at
            which all processes save before the job is stopped.
        multiprocessing_options: Those of the checkpointer.
        saving_step: The step of the save that runs, or None.
    """

    is_saving_in_progress: bool = False
    reached_preemption: bool = False
    multiprocessing_options: MultiprocessingOptions | None = None
    saving_step: int | None = None


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides whether a step is saved."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Answers for `step`, given the committed checkpoints in order of their steps."""
        ...


@dataclass(frozen=True)
class FixedIntervalPolicy:
    """Saves steps that `interval` divides.

    Raises:
        ValueError: `interval` is less than 1.

    Examples:
        >>> from holdfast_manager.policies.info import Candidate
        >>> FixedIntervalPolicy(10).should_save(Candidate(20), [], context=DecisionContext())
        True
    """

    interval: int

    def __post_init__(self) -> None:
        check_integer("interval", self.interval, at_least=1)

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether `interval` divides the step."""
        return step.step % self.interval == 0


@dataclass(frozen=True)
class SpecificStepsPolicy:
    """Saves the steps that are in `steps`: a set, a list, a range.

    Raises:
        TypeError: `steps` cannot be asked for membership.
    """

    steps: Container[int]

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether the step is one of `steps`."""
        return step.step in self.steps


@dataclass(frozen=True)
class InitialSavePolicy:
    """Saves the first step of a run that has no checkpoint yet."""

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether nothing is committed yet and no first save is under way."""
        return not previous_steps and not context.is_saving_in_progress


@dataclass(frozen=True)
class ContinuousCheckpointingPolicy:
    """Saves whenever no save is under way, at most every `minimum_interval_secs`.

    The interval counts from the commit of the newest checkpoint, before a restart and after.
    If that commit lies in the future, the clock was set back since, and nothing is waited for.

    Raises:
        ValueError: `minimum_interval_secs` is negative or not finite.
    """

    minimum_interval_secs: float | None = None

    def __post_init__(self) -> None:
        check_seconds("minimum_interval_secs", self.minimum_interval_secs, or_none=True)

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether no save runs and the last commit is old enough."""
        if context.is_saving_in_progress:
            return False
        if self.minimum_interval_secs is None or not previous_steps:
            return True
        age = time.time() - seconds(previous_steps[-1])
        return age < 0 or age >= self.minimum_interval_secs


@dataclass(frozen=True)
class PreemptionCheckpointingPolicy:
    """Saves the step at which a job that is about to be stopped is to save.

    JAX's preemption service agrees on that step among all processes, after SIGTERM or
    another notice has reached one of them. It runs where `jax.distributed` does, and asks
    to be asked at every step: call `save` (or `should_save`) at each. Without the service
    the answer is yes once a signal has come in the block of `save_on_termination`, else no.
    """

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """Whether the preemption service named this step."""
        return context.reached_preemption


@dataclass(frozen=True)
class AnySavePolicy:
    """Saves if any of its policies would; without policies, never.

    Raises:
        TypeError: `policies` is not a list of policies.
    """

    policies: Sequence[SaveDecisionPolicy]

    def __post_init__(self) -> None:
        members = check_policies(self.policies, SaveDecisionPolicy, "should_save")
        object.__setattr__(self, "policies", members)

    def should_save(
        self,
        step: PolicyCheckpointInfo,
        previous_steps: Sequence[PolicyCheckpointInfo],
        *,
        context: DecisionContext,
    ) -> bool:
        """The OR of all answers; every policy is asked."""
        answers = [p.should_save(step, previous_steps, context=context) for p in self.policies]
        return any(answers)
