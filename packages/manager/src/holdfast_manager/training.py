"""A training run's checkpoints: save steps, find the latest, resume from it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex

from holdfast_checkpointer import functions, options
from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.engine.names import AUTO, METRICS, STATE
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    attended,
    refuse_several_processes,
    write_checkpoint,
)
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.preservation_policies import PreservationPolicy, PreserveAll
from holdfast_manager.policies.save_decision_policies import (
    ContinuousCheckpointingPolicy,
    DecisionContext,
    SaveDecisionPolicy,
)
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata, check_step, step_name
from holdfast_metadata import require_json
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SaveResult:
    """What became of a save. True in a condition if the step was committed.

    Attributes:
        step: The step.
        saved: Whether it was committed.
        reason: Why not, in words; empty if it was.
    """

    step: int
    saved: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.saved


class SaveResponse(AsyncResponse[SaveResult]):
    """The handle of a background save; false in a condition if the step was declined.

    Attributes:
        reason: Why the step was declined, in words; empty if it is being saved.
    """

    reason = ""

    @classmethod
    def declined(cls, step: int, reason: str) -> SaveResponse:
        """A response of a save that a policy declined."""
        response = cls.completed(SaveResult(step, saved=False, reason=reason))
        response.reason = reason
        return response

    def __bool__(self) -> bool:
        return not self.reason


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
        self._policy = save_decision_policy or ContinuousCheckpointingPolicy()
        self._preservation = preservation_policy or PreserveAll()
        self._custom_metadata = custom_metadata
        self._steps: dict[int, CheckpointMetadata] = {}
        self._steps_lock = threading.Lock()
        self._save_lock = threading.RLock()
        self._current: SaveResponse | None = None
        self._housekeeping: AsyncResponse[None] | None = None
        self._swept = False
        self._closed = False
        self.reload()

    @property
    def directory(self) -> str:
        """The run's folder, as a URL or path."""
        return self._run.label

    @property
    def checkpoints(self) -> Sequence[CheckpointMetadata]:
        """The committed steps in order, as of the last own commit or `reload`."""
        with self._steps_lock:
            return [self._steps[step] for step in sorted(self._steps)]

    @property
    def latest(self) -> CheckpointMetadata | None:
        """The newest committed step, or None."""
        checkpoints = self.checkpoints
        return checkpoints[-1] if checkpoints else None

    def reload(self) -> None:
        """Lists the storage again, to see what other processes committed or removed."""
        listed = get_loop().run(self._run.list_steps())
        with self._steps_lock:
            self._steps = {entry.step: entry for entry in listed}

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save this step. Changes nothing."""
        return not self._reason_to_skip(check_step(step))

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
        number = check_step(step)
        refuse_several_processes(self._context)
        with self._save_lock:
            self._check_open()
            self._raise_earlier_failure()
            if not overwrite and self._is_committed(number):
                raise StepAlreadyExistsError(number, self.directory)
            reason = "" if force else self._reason_to_skip(number, overwrite=overwrite)
            if reason:
                return SaveResponse.declined(number, reason)
            self._wait_for_save()
            contents = self._stage(state, checkpointable_name, metrics, custom_metadata)
            self._current = attended(
                contents,
                lambda: SaveResponse(
                    self._write(number, contents, overwrite=overwrite),
                    what=f"the save of step {number} in {self.directory}",
                    deadline=self._context.asynchronous.timeout_secs,
                    afterwards=self._context.asynchronous.post_finalization_callback,
                ),
            )
            return self._current

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
        number = self._resolve(step)
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
        number = self._resolve(step)
        return functions.metadata_from(self._run.backend, step_name(number))

    def root_metadata(self) -> Mapping[str, Any]:
        """The metadata stored for the run; empty if there is none."""
        return get_loop().run(self._run.read_root_metadata())

    def is_saving_in_progress(self) -> bool:
        """Whether a background save has not committed or failed yet."""
        return self._current is not None and not self._current.done()

    def wait(self) -> None:
        """Waits for the background save and for the removal of old steps.

        Raises:
            Exception: What the save failed with, if nobody has asked it yet.
        """
        self._wait_for_save()
        housekeeping = self._housekeeping
        if housekeeping is not None:
            housekeeping.exception()  # logged where it happened; no step is lost by it
        self._raise_earlier_failure()

    def close(self) -> None:
        """Waits as `wait` does; afterwards nothing more can be saved."""
        self._closed = True
        self.wait()

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

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the checkpointer of {self.directory} is closed")

    def _reason_to_skip(self, step: int, *, overwrite: bool = False) -> str:
        checkpoints = self.checkpoints
        latest = checkpoints[-1].step if checkpoints else None
        replaces_latest = overwrite and latest == step
        if latest is not None and latest >= step and not replaces_latest:
            return f"step {step} is not newer than the latest, {latest} (force=True saves it)"
        context = DecisionContext(is_saving_in_progress=self.is_saving_in_progress())
        if not self._policy.should_save(step, checkpoints, context=context):
            return f"the policy {self._policy!r} declined step {step}"
        return ""

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

    async def _write(self, step: int, contents: Contents, *, overwrite: bool) -> SaveResult:
        if self._custom_metadata is not None and not self._swept:
            await self._run.write_root_metadata(self._custom_metadata)
        record = await write_checkpoint(
            self._run.backend,
            step_name(step),
            contents,
            replace=overwrite,
            atomicity=self._context.atomicity.mode,
        )
        with self._steps_lock:
            self._steps[step] = self._run.describe(step, record.committed_ns)
        await self._run.note_commit(step)
        self._housekeeping = AsyncResponse(
            self._keep_house(self._housekeeping), what=f"removing old steps of {self.directory}"
        )
        return SaveResult(step, saved=True)

    async def _keep_house(self, previous: AsyncResponse[None] | None) -> None:
        """Removes old steps and, once, dead attempts; its failure loses no checkpoint."""
        if previous is not None:
            await previous
        try:
            await self._collect()
            if not self._swept:
                self._swept = True
                await self._run.sweep()
                await self._run.repair_hints()
        except Exception:  # noqa: BLE001 - the steps are safe; what is left is collected next time
            _log.warning("could not remove old steps of %s", self.directory, exc_info=True)

    async def _collect(self) -> None:
        while True:
            checkpoints = list(self.checkpoints)
            # Outside the loop, for a policy may read metrics.
            keep = await asyncio.to_thread(self._preservation.should_preserve, checkpoints)
            decided = list(zip(checkpoints, keep, strict=True))[:-1]
            surplus = [entry for entry, kept in decided if not kept and entry.ours]
            if not surplus:
                return
            # A step that is not there must not be kept in place of one that is.
            if all([await self._confirm(entry) for entry, kept in decided if kept]):
                break
        for entry in surplus:
            self._drop(entry)
            if await self._confirm(entry):
                await self._run.remove(entry.step)

    def _drop(self, entry: CheckpointMetadata) -> None:
        with self._steps_lock:
            if self._steps.get(entry.step) is entry:
                del self._steps[entry.step]

    async def _confirm(self, entry: CheckpointMetadata) -> bool:
        """Whether a listed step is committed; if only a stale hint said so, both go."""
        if await self._run.is_committed(entry):
            return True
        self._drop(entry)
        await self._run.note_absence(entry.step)
        return False

    def _is_committed(self, step: int) -> bool:
        entry = self._steps.get(step)
        return entry is not None and get_loop().run(self._confirm(entry))

    def _resolve(self, step: SupportsIndex | CheckpointMetadata | None) -> int:
        number = None if step is None else _step_of(step)
        latest = self.latest
        if number is None and latest is not None:
            return latest.step
        if number is None or number not in self._steps:
            self.reload()  # another process may have committed since
        found = self.latest if number is None else self._steps.get(number)
        if found is not None and not get_loop().run(self._run.is_committed(found)):
            self._drop(found)
            found = None
        if found is None:
            known = [entry.step for entry in self.checkpoints]
            raise StepNotFoundError(number, self.directory, known)
        return found.step

    def _wait_for_save(self) -> None:
        if self._current is not None:
            self._current.wait()

    def _raise_earlier_failure(self) -> None:
        """Raises what a finished save failed with, unless somebody has been told already."""
        current = self._current
        if current is not None and current.done() and not current.observed:
            current.result()


def _step_of(step: SupportsIndex | CheckpointMetadata) -> int:
    return step.step if isinstance(step, CheckpointMetadata) else check_step(step)
