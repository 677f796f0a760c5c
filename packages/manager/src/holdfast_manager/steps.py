"""Steps: what a step is, how it is named, and what is known of a committed one."""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

_STEP = re.compile(r"0|[1-9]\d*")


class Unread(enum.Enum):
    """Stands for what nobody has read yet."""

    UNREAD = "unread"


UNREAD = Unread.UNREAD


def check_step(step: SupportsIndex) -> int:
    """Returns `step` as an int; numpy integers are steps too.

    Raises:
        TypeError: It is not an integer (a bool is not one).
        ValueError: It is negative.
    """
    if isinstance(step, bool) or not hasattr(step, "__index__"):
        raise TypeError(f"a step is an integer >= 0, got {step!r} of type {type(step).__name__}")
    number = step.__index__()
    if number < 0:
        raise ValueError(f"a step is an integer >= 0, got {number}")
    return number


def step_name(step: int) -> str:
    """The folder of a step."""
    return str(step)


def parse_step(name: str) -> int | None:
    """The step that a folder's name stands for, or None if it is no step's.

    Example:
        >>> parse_step("12"), parse_step("007"), parse_step("metrics")
        (12, None, None)
    """
    return int(name) if _STEP.fullmatch(name) else None


class CheckpointMetadata:
    """A committed checkpoint of a run.

    Attributes:
        step: Its step.
        path: Its URL or path.
        ours: Whether holdfast wrote it.
    """

    def __init__(
        self,
        step: int,
        path: str,
        commit_timestamp_nsecs: int | Unread | None,
        read_metrics: Callable[[], Mapping[str, Any] | None],
        look: Callable[[CheckpointMetadata], None],
        *,
        ours: bool = True,
    ) -> None:
        self.step = step
        self.path = path
        self.ours = ours
        self._committed_ns = commit_timestamp_nsecs
        self._look = look
        self._read_metrics = read_metrics
        self._metrics: Mapping[str, Any] | None = None
        self._metrics_known = False

    @property
    def hinted(self) -> bool:
        """Whether only a hint says that it is committed: its record was not read yet."""
        return self._committed_ns is UNREAD

    def confirm(self, committed_ns: int | None) -> None:
        """Takes in what the record says."""
        self._committed_ns = committed_ns

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When it was committed, by the writer's clock; read when first asked for.

        None for a checkpoint that does not say, or is gone.
        """
        if self._committed_ns is UNREAD:
            self._look(self)
        return None if self._committed_ns is UNREAD else self._committed_ns

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """The metrics saved with the step, read when first asked for; None if none were."""
        if not self._metrics_known:
            self._metrics = self._read_metrics()
            self._metrics_known = True
        return self._metrics

    @property
    def time(self) -> float:
        """Seconds since the epoch at the commit; 0.0 if unknown."""
        return (self.commit_timestamp_nsecs or 0) / 1e9

    def __repr__(self) -> str:
        return f"CheckpointMetadata(step={self.step}, path={self.path!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CheckpointMetadata):
            return NotImplemented
        return (self.step, self.path) == (other.step, other.path)

    def __hash__(self) -> int:
        return hash((self.step, self.path))
