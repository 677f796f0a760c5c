"""Saving the steps of a run, one at a time, in the background."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    attended,
    refuse_several_processes,
    write_checkpoint,
)
from holdfast_checkpointer.options import Context
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.retention import Retention
from holdfast_manager.errors import StepAlreadyExistsError
from holdfast_manager.policies.save_decision_policies import DecisionContext, SaveDecisionPolicy
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import step_name


class Saver:
    """Decides about a step, snapshots it, and writes it once the save before it has ended."""

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        retention: Retention,
        policy: SaveDecisionPolicy,
        context: Context,
        *,
        root_metadata: Mapping[str, Any] | None,
    ) -> None:
        self._run = run
        self._known = known
        self._retention = retention
        self._policy = policy
        self._root_metadata = root_metadata
        self._context = context
        self._lock = threading.RLock()
        self._current: SaveResponse | None = None
        self._closed = False

    def save(
        self, step: int, stage: Callable[[], Contents], *, force: bool, overwrite: bool
    ) -> SaveResponse:
        """Decides, waits for the earlier save, stages, and writes in the background."""
        refuse_several_processes(self._context)
        with self._lock:
            self._check_open()
            self._raise_earlier_failure()
            if not overwrite and self._known.is_committed(step):
                raise StepAlreadyExistsError(step, self._run.label)
            reason = "" if force else self.reason_to_skip(step, overwrite=overwrite)
            if reason:
                return SaveResponse.declined(step, reason)
            self.wait_for_save()
            contents = stage()
            self._current = attended(
                contents,
                lambda: SaveResponse(
                    self._write(step, contents, overwrite=overwrite),
                    what=f"the save of step {step} in {self._run.label}",
                    deadline=self._context.asynchronous.timeout_secs,
                    afterwards=self._context.asynchronous.post_finalization_callback,
                ),
            )
            return self._current

    def reason_to_skip(self, step: int, *, overwrite: bool = False) -> str:
        """Why a step would not be saved, in words; empty if it would be. Changes nothing."""
        checkpoints = self._known.all()
        latest = checkpoints[-1].step if checkpoints else None
        replaces_latest = overwrite and latest == step
        if latest is not None and latest >= step and not replaces_latest:
            return f"step {step} is not newer than the latest, {latest} (force=True saves it)"
        context = DecisionContext(is_saving_in_progress=self.is_saving())
        if not self._policy.should_save(step, checkpoints, context=context):
            return f"the policy {self._policy!r} declined step {step}"
        return ""

    def is_saving(self) -> bool:
        """Whether a background save has not committed or failed yet."""
        current = self._current
        return current is not None and not current.done()

    def wait(self) -> None:
        """Waits for the background save and the removal of old steps; raises its failure once."""
        self.wait_for_save()
        self._retention.wait()
        self._raise_earlier_failure()

    def close(self) -> None:
        """Waits as `wait` does; afterwards nothing more can be saved."""
        self._closed = True
        self.wait()

    def wait_for_save(self) -> None:
        """Waits for the background save without asking for its outcome."""
        current = self._current
        if current is not None:
            current.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the checkpointer of {self._run.label} is closed")

    def _raise_earlier_failure(self) -> None:
        """Raises what a finished save failed with, unless somebody has been told already."""
        current: AsyncResponse[SaveResult] | None = self._current
        if current is not None and current.done() and not current.observed:
            current.result()

    async def _write(self, step: int, contents: Contents, *, overwrite: bool) -> SaveResult:
        if self._root_metadata is not None and not self._retention.swept:
            await self._run.write_root_metadata(self._root_metadata)
        record = await write_checkpoint(
            self._run.backend,
            step_name(step),
            contents,
            replace=overwrite,
            atomicity=self._context.atomicity.mode,
        )
        self._known.add(self._run.describe(step, record.committed_ns))
        await self._run.note_commit(step)
        self._retention.start()
        return SaveResult(step, saved=True)
