"""The checkpoints of one training run."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex

from holdfast_checkpointer import functions, options
from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.engine.names import AUTO, METRICS, STATE
from holdfast_checkpointer.engine.saving import Contents
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.retention import Retention
from holdfast_manager.engine.saver import Saver
from holdfast_manager.policies.preservation_policies import PreservationPolicy, PreserveAll
from holdfast_manager.policies.save_decision_policies import (
    ContinuousCheckpointingPolicy,
    SaveDecisionPolicy,
)
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata, check_step, step_name
from holdfast_metadata import require_json
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and loads the steps of one run, on any storage.

    A step is listed once it is committed, never before. Opening a run writes nothing; the
    first save also removes what dead writers left behind. Methods may be called from any
    thread; one save runs at a time, and the next one waits for it.

    Args:
        directory: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        context: Options for this run; they win over an entered `Context`.
        save_decision_policy: When to save; by default whenever no save is under way.
        preservation_policy: What to keep; by default everything. The newest committed
            step is never removed.
        custom_metadata: A JSON object stored once for the run, at the first save.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> with hf.training.Checkpointer("memory://doc/run") as checkpointer:
        ...     saved = checkpointer.save(100, {"w": np.ones(2)}, metrics={"loss": 0.5})
        >>> bool(saved), checkpointer.latest.step, checkpointer.latest.metrics
        (True, 100, {'loss': 0.5})
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        context: options.Context | None = None,
        save_decision_policy: SaveDecisionPolicy | None = None,
        preservation_policy: PreservationPolicy | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if custom_metadata is not None:
            functions.check_custom_metadata(custom_metadata)
        self._context = options.current(context)
        self._run = RunDirectory(self._context.open_backend(directory))
        self._known = KnownSteps(self._run)
        retention = Retention(self._run, self._known, preservation_policy or PreserveAll())
        self._saver = Saver(
            self._run,
            self._known,
            retention,
            save_decision_policy or ContinuousCheckpointingPolicy(),
            self._context,
            root_metadata=custom_metadata,
        )
        self.reload()

    @property
    def directory(self) -> str:
        """The run's folder, as a URL or path."""
        return self._run.label

    @property
    def checkpoints(self) -> Sequence[CheckpointMetadata]:
        """The committed steps in order, as of the last own commit or `reload`."""
        return self._known.all()

    @property
    def latest(self) -> CheckpointMetadata | None:
        """The newest committed step, or None."""
        return self._known.latest

    def reload(self) -> None:
        """Lists the storage again, to see what other processes committed or removed."""
        self._known.reload()

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save this step. Changes nothing."""
        return not self._saver.reason_to_skip(check_step(step))

    def save(
        self,
        step: SupportsIndex,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> SaveResult:
        """Saves a step and waits for the commit; see `save_async`."""
        return self.save_async(
            step,
            state,
            checkpointable_name=checkpointable_name,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        ).result()

    def save_async(
        self,
        step: SupportsIndex,
        state: Any,
        *,
        checkpointable_name: str = STATE,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> SaveResponse:
        """Takes a snapshot of `state` and saves it in the background.

        The caller may change or donate its arrays as soon as this returns.

        Args:
            step: An integer >= 0.
            state: A PyTree.
            checkpointable_name: The item's name.
            force: Save whatever the policy says, also a step older than the latest.
            overwrite: Replace the step if it is committed; the old one stays until the
                new one is.
            metrics: A JSON object stored with the step.
            custom_metadata: A JSON object stored with the step.

        Returns:
            A handle that is false in a condition if the step was declined.

        Raises:
            StepAlreadyExistsError: It is committed and `overwrite` is false.
            ValueError: Something cannot be saved; nothing was written.
            Exception: What an earlier background save failed with, if nobody has asked it
                yet. This step was then not saved.
        """

        def stage() -> Contents:
            return self._stage(state, checkpointable_name, metrics, custom_metadata)

        return self._saver.save(check_step(step), stage, force=force, overwrite=overwrite)

    def load(
        self,
        step: SupportsIndex | CheckpointMetadata | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = AUTO,
        **restore: Any,
    ) -> Any:
        """Loads a step, by default the latest; see `holdfast.load` for the other arguments.

        Raises:
            StepNotFoundError: It is not committed; the message lists the steps that are.
        """
        number = self._known.resolve(step).step
        return functions.load_from(
            self._run.backend,
            step_name(number),
            abstract_state,
            checkpointable_name=checkpointable_name,
            context=self._context,
            **restore,
        ).result()

    def metadata(self, step: SupportsIndex | CheckpointMetadata | None = None) -> Any:
        """Describes a step, by default the latest, without reading arrays."""
        number = self._known.resolve(step).step
        return functions.metadata_from(self._run.backend, step_name(number))

    def root_metadata(self) -> Mapping[str, Any]:
        """The metadata stored for the run; empty if there is none."""
        return get_loop().run(self._run.read_root_metadata())

    def is_saving_in_progress(self) -> bool:
        """Whether a background save has not committed or failed yet."""
        return self._saver.is_saving()

    def wait(self) -> None:
        """Waits for the background save and for the removal of old steps.

        Raises:
            Exception: What the save failed with, if nobody has asked it yet.
        """
        self._saver.wait()

    def close(self) -> None:
        """Waits as `wait` does; afterwards nothing more can be saved."""
        self._saver.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception:  # noqa: BLE001 - never in place of the error that is under way
            _log.exception("a background save failed as well")

    def _stage(
        self,
        state: Any,
        name: str,
        metrics: Mapping[str, Any] | None,
        custom_metadata: Mapping[str, Any] | None,
    ) -> Contents:
        if metrics is not None:
            require_json(metrics, what="metrics")
        contents = functions.stage_state(state, name, custom_metadata, self._context)
        if metrics is None:
            return Contents(contents.items, contents.custom_metadata)
        handler = JsonCheckpointHandler(filename=METRICS)
        staged = handler.stage(JsonSave(dict(metrics)), self._context)
        items = {**contents.items, METRICS: Item(staged, handler.typestr())}
        return Contents(items, contents.custom_metadata)
