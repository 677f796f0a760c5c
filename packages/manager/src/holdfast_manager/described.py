"""What `metadata` and `root_metadata` of a run return."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_manager.steps import CheckpointMetadata as ListedCheckpoint


@dataclass(frozen=True)
class DescribedCheckpoint(CheckpointMetadata):
    """A step of a run, described: what `holdfast.metadata` says, and what the run knows of it.

    Attributes:
        step: Its step.
        metrics: The metrics saved with it, or None.
    """

    step: int = -1
    metrics: Mapping[str, Any] | None = None

    @property
    def time(self) -> datetime.datetime | None:
        """When it was committed, in UTC, if known."""
        return self.commit_timestamp

    @classmethod
    def of(cls, found: CheckpointMetadata, entry: ListedCheckpoint) -> DescribedCheckpoint:
        """Adds what the run knows."""
        fields = {f.name: getattr(found, f.name) for f in dataclasses.fields(CheckpointMetadata)}
        return cls(**(fields | {"path": entry.path}), step=entry.step, metrics=entry.metrics)


# Orbax's two are one class, and programs ask for it by name.
ListedCheckpoint.register(DescribedCheckpoint)


@dataclass(frozen=True)
class RootMetadata:
    """A run, described.

    Attributes:
        directory: Its URL or path, which `/` joins.
        custom_metadata: What was stored for the run; empty if nothing was.
    """

    directory: str
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
