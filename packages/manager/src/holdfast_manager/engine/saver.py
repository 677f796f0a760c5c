"""Saving the steps of a run, one at a time, in the background."""

from __future__ import annotations

import concurrent.futures
import copy
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.engine.removal import remove_item
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    attended,
    refuse_several_processes,
    write_checkpoint,
)
from holdfast_checkpointer.options import Context
from holdfast_manager.engine import termination
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.preemption import Preemption
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.retention import Retention
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.checks import yes_or_no
from holdfast_manager.policies.info import Candidate
from holdfast_manager.policies.save_decision_policies import DecisionContext, SaveDecisionPolicy
from holdfast_manager.run_directory import RunDirectory
from holdfast_storage import CommitConflictError
from holdfast_storage.loop import get_loop


@dataclass(frozen=True)
class _Running:
    """The save that was begun last."""

    step: int
    response: SaveResponse


class Saver:
    """Decides about a step, snapshots it, and writes it once the save before it has ended.

    Args:
        run: The run.
        known: Its steps.
        retention: What happens after a commit.
        quarantine: Steps whose place a save takes without being told to overwrite.
        lease: Who may write.
        policy: When to save.
        context: Options.
        root_metadata: Stored once for the run.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        retention: Retention,
        quarantine: Quarantine,
        lease: WritingLease,
        policy: SaveDecisionPolicy,
        context: Context,
        *,
        root_metadata: Mapping[str, Any] | None,
    ) -> None:
        self._run = run
        self._known = known
        self._retention = retention
        self._quarantine = quarantine
        self._lease = lease
        self._policy = policy
        self._context = context
        self._root_metadata = root_metadata
        self._preemption = Preemption()
        self._lock = threading.RLock()
        self._current: _Running | None = None
        self._deletion: AsyncResponse[bool] | None = None
        self._closed = False

    def save(
        self,
        step: int,
        stage: Callable[[], Contents],
        *,
        metrics: Mapping[str, Any] | None = None,
        force: bool,
        overwrite: bool,
    ) -> SaveResponse:
        """Decides, waits for the earlier save, stages, and writes in the background."""
        refuse_several_processes(self._context)
        with self._lock:
            self._check_open()
            self._raise_earlier_failure(f"step {step} was not saved")
            if self.is_saving(step):
                self.wait_for_save()  # its outcome decides about this one
                self._raise_earlier_failure(f"step {step} was not saved")
            if not overwrite and self._known.is_committed(step):
                raise StepAlreadyExistsError(step, self._run.label)
            self._preemption.reached(step)  # it expects to be asked at every step
            skip = "" if force else self.reason_to_skip(step, metrics=metrics, overwrite=overwrite)
            if skip:
                return SaveResponse.declined(step, skip)
            name = self._known.name_for(step)
            self._wait_for_what_runs()
            self._raise_earlier_failure(f"step {step} was not saved")
            termination.require_time(f"the save of step {step} in {self._run.label}")
            contents = stage()
            kept = copy.deepcopy(metrics)  # the caller may change them meanwhile
            response = attended(
                contents,
                lambda: SaveResponse(
                    self._write(step, name, contents, kept, overwrite=overwrite),
                    what=f"the save of step {step} in {self._run.label}",
                    deadline=self._context.asynchronous.timeout_secs,
                    afterwards=self._context.asynchronous.post_finalization_callback,
                ),
            )
            self._current = _Running(step, response)
            return response

    def reason_to_skip(
        self, step: int, *, metrics: Mapping[str, Any] | None = None, overwrite: bool = False
    ) -> str:
        """Why a step would not be saved, in words; empty if it would be. Changes nothing."""
        preempted = self._preemption.reached(step)
        checkpoints = self._known.all()
        latest = checkpoints[-1].step if checkpoints else -1
        if step < latest or (step == latest and not overwrite):
            return f"step {step} is not newer than the latest, {latest} (force=True saves it)"
        running = self._current
        if self.is_saving() and running is not None and step <= running.step and not overwrite:
            return f"step {step} is not newer than {running.step}, which is being saved"
        saving = self.is_saving()
        context = DecisionContext(
            is_saving_in_progress=saving,
            reached_preemption=preempted,
            multiprocessing_options=self._context.multiprocessing,
            saving_step=running.step if saving and running is not None else None,
        )
        if preempted and termination.requested():
            return ""  # no step comes after this one, whatever the policy waits for
        candidate = Candidate(step, metrics=metrics)
        answer: object = self._policy.should_save(candidate, checkpoints, context=context)
        if answer is None or not yes_or_no(answer, self._policy):
            busy = f"; step {running.step} was being saved" if saving and running else ""
            return f"the policy {self._policy!r} declined step {step}{busy}"
        return ""

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step at which a job that is to be stopped saves."""
        return self._preemption.reached(step)

    def delete(self, step: int, item: str | None, *, missing_ok: bool) -> AsyncResponse[bool]:
        """Removes one step, or an item of it, by name; see `Checkpointer.delete_async`."""
        with self._lock:
            self._check_open()
            self._wait_for_what_runs()
            self._raise_earlier_failure(f"step {step} was not removed")
            try:
                entry = self._known.resolve(step)
            except StepNotFoundError:
                if missing_ok:
                    return AsyncResponse.completed(False)
                raise
            get_loop().run(self._retention.require_unpinned(entry.step))
            if item is not None:
                work = self._remove_item(entry.name, item, missing_ok=missing_ok)
            else:
                self._known.drop(entry)
                work = self._retention.delete(entry, missing_ok=missing_ok)
            self._deletion = AsyncResponse(work, what=f"the removal of {item or entry.path}")
            return self._deletion

    def cancel(self) -> bool:
        """Stops the background save, unless its commit has begun; says whether it stopped.

        Raises:
            Exception: What the save failed with before it could be stopped.
        """
        current = self._current
        if current is None or not current.response.cancel():
            return False
        try:
            current.response.result()
        except concurrent.futures.CancelledError:
            return True
        return False

    def is_saving(self, step: int | None = None) -> bool:
        """Whether a background save, or that of one step, has not committed or failed yet."""
        current = self._current
        if current is None or step not in (None, current.step):
            return False
        return not current.response.done()

    def wait(self) -> None:
        """Waits for the background save and the removal of old steps; raises failures once."""
        self._wait_for_what_runs()
        self._retention.wait()
        self._raise_earlier_failure()

    def close(self) -> None:
        """Waits as `wait` does, and a while for data to be deleted; then saves no more."""
        with self._lock:  # a save that is being begun is waited for as well
            self._closed = True
        try:
            self.wait()
        finally:
            self._retention.close()
            self._lease.close()

    def check(self) -> None:
        """Raises what has failed in the background, unless somebody was told; does not wait."""
        self._raise_earlier_failure()

    def wait_for_save(self, step: int | None = None) -> None:
        """Waits for the background save, or that of one step, without asking for its outcome."""
        current = self._current
        if current is not None and step in (None, current.step):
            current.response.wait()

    def _wait_for_what_runs(self) -> None:
        self.wait_for_save()
        deletion = self._deletion
        if deletion is not None:
            deletion.wait()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the checkpointer of {self._run.label} is closed")

    def _raise_earlier_failure(self, consequence: str = "") -> None:
        """Raises what ended badly in the background, unless somebody has been told already."""
        current = self._current
        for response in (current.response if current else None, self._deletion):
            if response is None:
                continue
            try:
                response.raise_untold()
            except Exception as error:
                if consequence:
                    error.add_note(f"({consequence})")
                raise

    async def _remove_item(self, name: str, item: str, *, missing_ok: bool) -> bool:
        async with self._lease.writing():
            return await remove_item(self._run.backend, name, item, missing_ok=missing_ok)

    async def _write(
        self,
        step: int,
        name: str,
        contents: Contents,
        metrics: Mapping[str, Any] | None,
        *,
        overwrite: bool,
    ) -> SaveResult:
        async with self._lease.writing():
            replace = overwrite or await self._quarantine.may_replace(step)
            if replace:
                await self._retention.require_unpinned(step)
            if self._root_metadata is not None and not self._retention.swept:
                await self._run.write_root_metadata(self._root_metadata)
            try:
                record = await write_checkpoint(
                    self._run.backend, name, contents, replace=replace, context=self._context
                )
            except CommitConflictError as error:
                if replace:
                    raise
                raise StepAlreadyExistsError(step, self._run.label) from error
            entry = self._run.describe(step, record.committed_ns, name)
            entry.take_metrics(metrics)
            replaced = self._known.aside(step)
            self._known.add(entry)
            await self._run.note_commit(entry)
            if replaced is not None:
                self._retention.forget_mark(name, unless=record.attempt)
        self._retention.start()
        return SaveResult(step, saved=True)
