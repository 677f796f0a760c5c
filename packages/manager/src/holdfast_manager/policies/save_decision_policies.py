"""When to save. A policy is asked once per step and answers yes or no.

Before any policy is asked, a step that is not newer than the latest is declined; `force`
bypasses policies altogether.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from holdfast_manager.steps import CheckpointMetadata


@dataclass(frozen=True)
class DecisionContext:
    """What a policy may consider besides the steps.

    Attributes:
        is_saving_in_progress: Whether an earlier save still runs.
    """

    is_saving_in_progress: bool = False


@runtime_checkable
class SaveDecisionPolicy(Protocol):
    """Decides whether a step is saved."""

    def should_save(
        self, step: int, previous: Sequence[CheckpointMetadata], *, context: DecisionContext
    ) -> bool:
        """Answers for `step`, given the committed checkpoints in order of their steps."""
        ...


@dataclass(frozen=True)
class FixedIntervalPolicy:
    """Saves steps that `interval` divides.

    Example:
        >>> FixedIntervalPolicy(10).should_save(20, [], context=DecisionContext())
        True
    """

    interval: int

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"interval must be at least 1, got {self.interval!r}")

    def should_save(
        self, step: int, previous: Sequence[CheckpointMetadata], *, context: DecisionContext
    ) -> bool:
        """Whether `interval` divides `step`."""
        return step % self.interval == 0


@dataclass(frozen=True)
class InitialSavePolicy:
    """Saves the first step of a run that has no checkpoint yet."""

    def should_save(
        self, step: int, previous: Sequence[CheckpointMetadata], *, context: DecisionContext
    ) -> bool:
        """Whether nothing is committed yet."""
        return not previous


@dataclass(frozen=True)
class ContinuousCheckpointingPolicy:
    """Saves whenever no save is under way, at most every `minimum_interval_secs`."""

    minimum_interval_secs: float | None = None

    def should_save(
        self, step: int, previous: Sequence[CheckpointMetadata], *, context: DecisionContext
    ) -> bool:
        """Whether no save runs and the last commit is old enough."""
        if context.is_saving_in_progress:
            return False
        if self.minimum_interval_secs is None or not previous:
            return True
        return time.time() - previous[-1].time >= self.minimum_interval_secs


@dataclass(frozen=True)
class AnySavePolicy:
    """Saves if any of its policies would."""

    policies: Sequence[SaveDecisionPolicy]

    def should_save(
        self, step: int, previous: Sequence[CheckpointMetadata], *, context: DecisionContext
    ) -> bool:
        """The OR of all answers; every policy is asked."""
        answers = [p.should_save(step, previous, context=context) for p in self.policies]
        return any(answers)
