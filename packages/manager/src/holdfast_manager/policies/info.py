"""What a policy is told about a step."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class PolicyCheckpointInfo(Protocol):
    """A committed checkpoint, or the step that is to be decided, as policies see it.

    Attributes:
        step: Its number.
        time: When it was committed, by the writer's clock, with a time zone.
        metrics: The metrics saved with it, or None.
    """

    @property
    def step(self) -> int:
        """Its number."""
        ...

    @property
    def time(self) -> datetime.datetime:
        """When it was committed."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """Its metrics."""
        ...


def _now() -> datetime.datetime:
    return datetime.datetime.fromtimestamp(time.time(), datetime.UTC)


@dataclass(frozen=True)
class Candidate:
    """A step that is to be decided: it has no commit yet.

    Attributes:
        step: Its number.
        time: Now.
        metrics: Those that are to be saved with it, or None.
    """

    step: int
    time: datetime.datetime = field(default_factory=_now)
    metrics: Mapping[str, Any] | None = None


def seconds(info: PolicyCheckpointInfo) -> float:
    """The time of a checkpoint in seconds since the epoch."""
    return info.time.timestamp()
