"""The interface of a manager, to write functions against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, SupportsIndex, runtime_checkable


@runtime_checkable
class AbstractCheckpointManager(Protocol):
    """What `CheckpointManager` offers; see there what each method does."""

    @property
    def directory(self) -> Any:
        """The run's folder."""
        ...

    def all_steps(self, read: bool = False) -> Sequence[int]:
        """The committed steps in order."""
        ...

    def latest_step(self) -> int | None:
        """The newest of them."""
        ...

    def best_step(self) -> int | None:
        """The best of them."""
        ...

    def reload(self) -> None:
        """Lists the storage again."""
        ...

    def reached_preemption(self, step: SupportsIndex) -> bool:
        """Whether the job is to be stopped after this step."""
        ...

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save this step."""
        ...

    def delete(self, step: SupportsIndex) -> None:
        """Removes a step."""
        ...

    def save(
        self,
        step: SupportsIndex,
        items: Any = None,
        save_kwargs: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        force: bool = False,
        args: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        """Saves a step."""
        ...

    def restore(
        self,
        step: SupportsIndex | None,
        items: Any = None,
        restore_kwargs: Mapping[str, Any] | None = None,
        directory: Any = None,
        args: Any = None,
    ) -> Any:
        """Restores a step."""
        ...

    def item_metadata(self, step: SupportsIndex) -> Any:
        """Describes the items of a step."""
        ...

    def metadata(self, step: SupportsIndex | None = None) -> Any:
        """Describes a step, or the run."""
        ...

    def metrics(self, step: SupportsIndex) -> Any:
        """The metrics of a step."""
        ...

    def wait_until_finished(self) -> None:
        """Waits for the save that runs."""
        ...

    def check_for_errors(self) -> None:
        """Raises what a save failed with."""
        ...

    def close(self) -> None:
        """Waits, and saves no more."""
        ...
