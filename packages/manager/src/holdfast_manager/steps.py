"""Steps: what a step is, and what is known of a committed one."""

from __future__ import annotations

import abc
import datetime
import enum
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, SupportsIndex

from holdfast_manager.place import Place


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
        raise TypeError(
            f"a step is an integer >= 0, got {reprlib.repr(step)} of type {type(step).__name__}"
        )
    try:
        number = step.__index__()
    except TypeError as error:  # an array of floats has the method and refuses
        raise TypeError(f"a step is an integer >= 0, got {reprlib.repr(step)}") from error
    if number < 0:
        raise ValueError(f"a step is an integer >= 0, got {number}")
    return number


@dataclass(frozen=True)
class StepReader:
    """How what is not known yet of a step is read; each call may ask the storage.

    Attributes:
        committed_ns: When it was committed, by the writer's clock; None if it is gone.
        metrics: The metrics saved with it, or None; None also if it is gone.
        size_bytes: The bytes of all its files, or None if that cannot be told.
    """

    committed_ns: Callable[[CheckpointMetadata], int | None]
    metrics: Callable[[CheckpointMetadata], Mapping[str, Any] | None]
    size_bytes: Callable[[CheckpointMetadata], int | None]


class CheckpointMetadata(metaclass=abc.ABCMeta):  # noqa: B024 - for `register`
    """A committed checkpoint of a run, as it is listed.

    What costs a request is read when it is first asked for. `Checkpointer.metadata(step)`
    describes what is in it; what that returns is an instance of this class as well.

    Attributes:
        step: Its step.
        path: Its URL or path.
        name: Its folder in the run.
        ours: Whether holdfast wrote it.
        unmarked: Whether Orbax wrote it before it marked its checkpoints: known by its items
            alone, so that it is read and never removed.
        metadata: None, as in Orbax, likewise the next two: `Checkpointer.metadata` tells them.
        init_timestamp_nsecs: None.
        custom_metadata: None.
    """

    metadata: Any = None
    init_timestamp_nsecs: int | None = None
    custom_metadata: Mapping[str, Any] | None = None

    def __init__(
        self,
        step: int,
        path: Place,
        name: str,
        committed_ns: int | Unread | None,
        reader: StepReader,
        *,
        ours: bool = True,
        unmarked: bool = False,
    ) -> None:
        self.step = step
        self.path = path
        self.name = name
        self.ours = ours
        self.unmarked = unmarked
        self.seen = 0  # how many own commits there were when it was listed; see `KnownSteps`
        self._committed_ns = committed_ns
        self._reader = reader
        self._metrics: Mapping[str, Any] | Unread | None = UNREAD
        self._size_bytes: int | Unread | None = UNREAD

    @property
    def hinted(self) -> bool:
        """Whether only a hint or its listing says that it is committed: its record was not read."""
        return self.ours and self._committed_ns is UNREAD

    @property
    def known_commit_ns(self) -> int | None:
        """As `commit_timestamp_nsecs`, as far as that was read already."""
        return None if self._committed_ns is UNREAD else self._committed_ns

    def confirm(self, committed_ns: int | Unread | None) -> None:
        """Takes in what the record says."""
        self._committed_ns = committed_ns

    @property
    def commit_timestamp_nsecs(self) -> int | None:
        """When it was committed, by the writer's clock; None if it is gone."""
        if self._committed_ns is UNREAD:
            found = self._reader.committed_ns(self)
            if found is None:
                return None
            self._committed_ns = found
        return self._committed_ns

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """The metrics saved with the step; None if none were, or if it is gone."""
        if self._metrics is UNREAD:
            self._metrics = self._reader.metrics(self)
        return self._metrics

    def take_metrics(self, metrics: Mapping[str, Any] | None) -> None:
        """Takes in the metrics that it was saved with: nobody has to read them."""
        if metrics is not None:
            self._metrics = metrics

    @property
    def size_bytes(self) -> int | None:
        """The bytes of all its files; None if that cannot be told."""
        if self._size_bytes is UNREAD:
            self._size_bytes = self._reader.size_bytes(self)
        return self._size_bytes

    @property
    def time(self) -> datetime.datetime:
        """When it was committed, in UTC; the epoch if it is gone."""
        return datetime.datetime.fromtimestamp(
            (self.commit_timestamp_nsecs or 0) / 1e9, datetime.UTC
        )

    @property
    def commit_timestamp(self) -> datetime.datetime | None:
        """`commit_timestamp_nsecs` in UTC."""
        return None if self.commit_timestamp_nsecs is None else self.time

    def __repr__(self) -> str:
        return f"CheckpointMetadata(step={self.step}, path={str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        if type(other) is not CheckpointMetadata:
            return NotImplemented
        return (self.step, self.path) == (other.step, other.path)

    def __hash__(self) -> int:
        return hash((self.step, self.path))
