"""What to keep. A policy is asked after each commit, about all committed steps.

Whatever a policy answers, the newest committed step and pinned steps are kept; they go only
when they are deleted by name. What a policy cannot use is refused when it is made.
"""

from __future__ import annotations

import datetime
import math
import reprlib
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from holdfast_manager.policies.checks import (
    check_duration,
    check_integer,
    check_policies,
    check_policy,
    check_seconds,
    check_steps,
)
from holdfast_manager.policies.info import PolicyCheckpointInfo, seconds


@dataclass(frozen=True, kw_only=True)
class PreservationContext:
    """What a policy may consider besides the checkpoints.

    Attributes:
        protected: Steps that stay whatever the policy answers, and why, in words.
    """

    protected: Mapping[int, Sequence[str]] = field(default_factory=dict)


_NO_CONTEXT = PreservationContext()


@runtime_checkable
class PreservationPolicy(Protocol):
    """Decides which checkpoints stay."""

    def should_preserve(
        self, checkpoints: Sequence[PolicyCheckpointInfo], *, context: PreservationContext
    ) -> Sequence[bool]:
        """Answers for each checkpoint, given in order of their steps."""
        ...


@dataclass(frozen=True)
class PreserveAll:
    """Keeps everything."""

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for each."""
        return [True] * len(checkpoints)


@dataclass(frozen=True)
class LatestN:
    """Keeps the `n` newest; None keeps all, and 0 means 0 (the newest stays all the same).

    Raises:
        ValueError: `n` is negative.

    Examples:
        >>> LatestN(2).should_preserve([1, 2, 3])
        [False, True, True]
    """

    n: int | None = None

    def __post_init__(self) -> None:
        check_integer("n", self.n, at_least=0, or_none=True)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for the last `n`."""
        return _newest([True] * len(checkpoints), self.n)


@dataclass(frozen=True)
class EveryNSeconds:
    """Keeps the first, then each that was committed `interval_secs` after the last one kept.

    One that was committed before the last one kept, by a clock that was set back meanwhile, is
    kept, and the interval counts from there.

    Raises:
        ValueError: `interval_secs` is negative or not finite.
    """

    interval_secs: float

    def __post_init__(self) -> None:
        check_seconds("interval_secs", self.interval_secs)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for those far enough from the one kept before."""
        return _spaced([seconds(info) for info in checkpoints], self.interval_secs)


@dataclass(frozen=True)
class EveryNSteps:
    """Keeps one in `interval_steps` steps, of those the newest `max_to_keep`.

    Attributes:
        interval_steps: At least 1.
        exact_interval: Keep steps that `interval_steps` divides. If false: the first, then
            each that is `interval_steps` after the last one kept.
        max_to_keep: None keeps all of these, and 0 means 0.

    Raises:
        ValueError: A number is too small.
    """

    interval_steps: int
    exact_interval: bool = True
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        check_integer("interval_steps", self.interval_steps, at_least=1)
        check_integer("max_to_keep", self.max_to_keep, at_least=0, or_none=True)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for those at, or far enough apart for, the interval."""
        steps = [info.step for info in checkpoints]
        if self.exact_interval:
            kept = [step % self.interval_steps == 0 for step in steps]
        else:
            kept = _spaced(steps, self.interval_steps)
        return _newest(kept, self.max_to_keep)


@dataclass(frozen=True)
class EveryNStepsClosest:
    """Keeps the step closest to each multiple of `interval_steps`, and always the last.

    For runs whose steps are irregular: what is kept does not drift. Of two that are equally
    close the later one stays; half way between two multiples belongs to the even one.

    Attributes:
        interval_steps: At least 1.
        max_to_keep: Of these, the newest; None keeps all, and 0 means 0.

    Raises:
        ValueError: A number is too small.
    """

    interval_steps: int
    max_to_keep: int | None = None

    def __post_init__(self) -> None:
        check_integer("interval_steps", self.interval_steps, at_least=1)
        check_integer("max_to_keep", self.max_to_keep, at_least=0, or_none=True)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for the closest to each multiple, and for the last."""
        closest: dict[int, tuple[int, int]] = {}
        for index, info in enumerate(checkpoints):
            multiple = _nearest_multiple(info.step, self.interval_steps)
            distance = abs(info.step - multiple * self.interval_steps)
            if multiple not in closest or distance <= closest[multiple][0]:
                closest[multiple] = (distance, index)
        chosen = {index for _, index in closest.values()} | {len(checkpoints) - 1}
        kept = [index in chosen for index in range(len(checkpoints))]
        return _newest(kept, self.max_to_keep)


@dataclass(frozen=True)
class CustomSteps:
    """Keeps the steps that are in `steps`: a set, a list, a range.

    Raises:
        TypeError: `steps` cannot be asked for membership.
    """

    steps: Container[int]

    def __post_init__(self) -> None:
        check_steps(self.steps)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for those named."""
        return [info.step in self.steps for info in checkpoints]


@dataclass(frozen=True, kw_only=True)
class BestN:
    """Keeps the `n` best by a metric; by itself it never loses the newest, which stays anyway.

    A metric that is not a number (NaN) is worse than any other. Of equal ones the later is
    better.

    Attributes:
        get_metric_fn: From the metrics of a checkpoint to a number.
        reverse: If false, larger is better; if true, smaller is.
        n: How many; None keeps all, and 0 keeps none.
        keep_checkpoints_without_metrics: Whether those stay that have no metrics and so
            cannot be ranked.

    Raises:
        ValueError: `n` is negative; or, when it is asked, `get_metric_fn` gives no number
            for a step that has metrics. Nothing is removed then.
        TypeError: `get_metric_fn` cannot be called.
    """

    get_metric_fn: Callable[[Any], float]
    reverse: bool = False
    n: int | None = None
    keep_checkpoints_without_metrics: bool = True

    def __post_init__(self) -> None:
        if not callable(self.get_metric_fn):
            raise TypeError(f"get_metric_fn is a function of metrics, got {self.get_metric_fn!r}")
        check_integer("n", self.n, at_least=0, or_none=True)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for the best `n`, and for those without metrics if they are to stay."""
        if self.n is None or len(checkpoints) <= self.n:
            return [True] * len(checkpoints)
        if self.n == 0:
            return [False] * len(checkpoints)
        ranked = self.ranking(checkpoints)
        kept = {id(info) for info in ranked[-self.n :]}
        if self.keep_checkpoints_without_metrics:
            kept |= {id(info) for info in checkpoints if info.metrics is None}
        return [id(info) in kept for info in checkpoints]

    def ranking(self, checkpoints: Sequence[PolicyCheckpointInfo]) -> list[PolicyCheckpointInfo]:
        """Those with metrics, the best last."""

        def rank(entry: tuple[int, PolicyCheckpointInfo]) -> tuple[bool, float, int]:
            value = self._value(entry[1])
            if math.isnan(value):
                return (False, 0.0, entry[0])
            return (True, -value if self.reverse else value, entry[0])

        measured = [(i, info) for i, info in enumerate(checkpoints) if info.metrics is not None]
        return [info for _, info in sorted(measured, key=rank)]

    def _value(self, info: PolicyCheckpointInfo) -> float:
        try:
            return float(self.get_metric_fn(info.metrics))
        except Exception as error:
            raise ValueError(
                f"get_metric_fn gives no number for step {info.step}, whose metrics are "
                f"{reprlib.repr(info.metrics)}: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class LatestDuration:
    """Keeps the first that is younger than `duration`, and everything after it.

    Raises:
        TypeError: `duration` is no `datetime.timedelta`.
        ValueError: It is negative.
    """

    duration: datetime.timedelta

    def __post_init__(self) -> None:
        check_duration("duration", self.duration)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True from the first young one on."""
        since = time.time() - self.duration.total_seconds()
        kept: list[bool] = []
        for info in checkpoints:
            kept.append(any(kept[-1:]) or seconds(info) >= since)
        return kept


@dataclass(frozen=True)
class DiskBudget:
    """Keeps as many of the newest as fit together into `max_bytes`.

    Steps that stay anyway (the newest, pinned ones) are counted first: they use the budget
    up. A step whose size cannot be told is kept and not counted.

    Attributes:
        max_bytes: At least 0.
        policy: Of what this keeps, the newest that fit; by default of everything.

    Raises:
        ValueError: `max_bytes` is negative.
        TypeError: `policy` is none.

    Examples:
        >>> terabyte = 10**12
        >>> DiskBudget(terabyte, EveryNSteps(1000)).max_bytes
        1000000000000
    """

    max_bytes: int
    policy: PreservationPolicy = field(default_factory=PreserveAll)

    def __post_init__(self) -> None:
        check_integer("max_bytes", self.max_bytes, at_least=0)
        check_policy("policy", self.policy, PreservationPolicy, "should_preserve")

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """True for the newest of what `policy` keeps, up to the budget."""
        wanted = list(self.policy.should_preserve(checkpoints, context=context))
        kept = [False] * len(checkpoints)
        left = self.max_bytes
        for index, info in enumerate(checkpoints):
            if info.step in context.protected:
                left -= _size(info) or 0
                kept[index] = wanted[index]
        full = False
        for index in range(len(checkpoints) - 1, -1, -1):
            info = checkpoints[index]
            if not wanted[index] or info.step in context.protected:
                continue
            size = _size(info)
            if size is not None:
                full = full or size > left
                left -= size
            kept[index] = size is None or not full
        return kept


@dataclass(frozen=True)
class AnyPreservationPolicy:
    """Keeps what any of its policies keeps; without policies, nothing.

    Raises:
        TypeError: `policies` is not a list of policies.
    """

    policies: Sequence[PreservationPolicy]

    def __post_init__(self) -> None:
        members = check_policies(self.policies, PreservationPolicy, "should_preserve")
        object.__setattr__(self, "policies", members)

    def should_preserve(
        self,
        checkpoints: Sequence[PolicyCheckpointInfo],
        *,
        context: PreservationContext = _NO_CONTEXT,
    ) -> Sequence[bool]:
        """The OR of all answers, for each checkpoint."""
        answers = [p.should_preserve(checkpoints, context=context) for p in self.policies]
        return [any(column) for column in zip(*answers, strict=True)] or [False] * len(checkpoints)


def _newest(kept: list[bool], count: int | None) -> list[bool]:
    """Of those kept, the last `count`."""
    chosen = [index for index, keep in enumerate(kept) if keep]
    if count is not None:
        chosen = chosen[len(chosen) - min(count, len(chosen)) :]
    stay = set(chosen)
    return [index in stay for index in range(len(kept))]


def _spaced(positions: Sequence[float], interval: float) -> list[bool]:
    """The first, then each that is `interval` after the last one kept, or before it."""
    kept: list[bool] = []
    last: float | None = None
    for position in positions:
        keep = last is None or position < last or position - last >= interval
        last = position if keep else last
        kept.append(keep)
    return kept


def _nearest_multiple(step: int, interval: int) -> int:
    """Which multiple is nearest; exact for any step, the even one half way."""
    multiple, rest = divmod(step, interval)
    if 2 * rest == interval:
        return multiple + multiple % 2
    return multiple + (2 * rest > interval)


def _size(info: PolicyCheckpointInfo) -> int | None:
    size: int | None = getattr(info, "size_bytes", None)
    return size
