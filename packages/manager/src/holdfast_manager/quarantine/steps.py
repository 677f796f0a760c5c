"""What is known of a step that is there and not good."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from holdfast_manager.quarantine.looking import StepIdentity
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import QuarantineMark
from holdfast_storage import IncompleteCheckpointError, RecordUnreadableError


@dataclass(frozen=True)
class QuarantinedStep:
    """A step that cannot be loaded whole.

    It is neither `latest` nor in `checkpoints`, and no policy counts it. `load(step)` still
    tries it, `delete(step)` removes it, and saving that step replaces it without
    `overwrite=True`.

    Attributes:
        step: The step.
        path: Its URL or path.
        problem: "damaged", "incomplete" (files are missing or short, as after half a copy) or
            "unreadable" (its commit record cannot be read; nothing of it is ever replaced).
        reason: What was found, in words.
        file: The damaged file, relative to the checkpoint; empty if unknown.
        leaf: The leaf it belongs to; empty if unknown.
        found: When a load found it, in UTC; None if no mark says so.
        found_by: The host and process that did; empty if no mark says so.
    """

    step: int
    path: str
    problem: str
    reason: str
    file: str = ""
    leaf: str = ""
    found: datetime.datetime | None = None
    found_by: str = ""

    @classmethod
    def marked(cls, entry: CheckpointMetadata, mark: QuarantineMark) -> QuarantinedStep:
        """What a mark says."""
        found = datetime.datetime.fromtimestamp(mark.by.created_ns / 1e9, datetime.UTC)
        by = f"{mark.by.host}, process {mark.by.pid}"
        return cls(
            entry.step,
            entry.path,
            mark.problem,
            f"{mark.error}: {mark.reason}",
            mark.file,
            mark.leaf,
            found,
            by,
        )

    @classmethod
    def seen(cls, entry: CheckpointMetadata, error: Exception) -> QuarantinedStep:
        """What an error says, before any mark does."""
        file, leaf = getattr(error, "file", ""), getattr(error, "leaf", "")
        file = "" if file == leaf else file  # that of an array stands in a database
        said = f"{type(error).__name__}: {error}"
        return cls(entry.step, entry.path, problem_of(error), said, file, leaf)

    def __str__(self) -> str:
        when = f", found {self.found:%Y-%m-%d %H:%M} by {self.found_by}" if self.found else ""
        return f"step {self.step} is {self.problem}: {self.reason}{when}"


def problem_of(error: Exception) -> str:
    """The word for what an error tells of a step."""
    if isinstance(error, RecordUnreadableError):
        return "unreadable"
    return "incomplete" if isinstance(error, IncompleteCheckpointError) else "damaged"


@dataclass(frozen=True)
class Aside:
    """A step that is set aside, as the run keeps it.

    Attributes:
        entry: The step.
        told: What is said of it.
        identity: What it is true of.
        marked: Whether a mark in the run says so, and not only this process.
    """

    entry: CheckpointMetadata
    told: QuarantinedStep
    identity: StepIdentity
    marked: bool = False
