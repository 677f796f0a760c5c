"""What to keep. A policy is asked after each commit, about all committed steps.

Whatever a policy answers, the newest committed step is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from holdfast_manager.steps import CheckpointMetadata


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which checkpoints stay."""

    def should_preserve(self, checkpoints: Sequence[CheckpointMetadata]) -> Sequence[bool]:
        """Answers for each checkpoint, given in order of their steps."""
        ...


@dataclass(frozen=True)
class PreserveAll:
    """Keeps everything."""

    def should_preserve(self, checkpoints: Sequence[CheckpointMetadata]) -> Sequence[bool]:
        """True for each."""
        return [True] * len(checkpoints)


@dataclass(frozen=True)
class LatestN:
    """Keeps the `n` newest; None keeps all, and 0 means 0 (the newest stays all the same).

    Example:
        >>> LatestN(2).should_preserve([1, 2, 3])
        [False, True, True]
    """

    n: int | None = None

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 0:
            raise ValueError(f"n must be None or at least 0, got {self.n!r}")

    def should_preserve(self, checkpoints: Sequence[CheckpointMetadata]) -> Sequence[bool]:
        """True for the last `n`."""
        kept = len(checkpoints) if self.n is None else self.n
        return [index >= len(checkpoints) - kept for index in range(len(checkpoints))]
