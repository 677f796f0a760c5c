"""Saving the steps of a run, one at a time, in the background."""

from __future__ import annotations

import concurrent.futures
import copy
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.removal import remove_item
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Commit,
    Contents,
    attended,
    write_checkpoint,
)
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.options import Context
from holdfast_manager.engine import termination
from holdfast_manager.engine.decisions import Decisions
from holdfast_manager.engine.job import Job, Said
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.retention import Retention
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.save_decision_policies import SaveDecisionPolicy
from holdfast_manager.quarantine import Aside
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import CommitRecord
from holdfast_storage import CommitConflictError
from holdfast_storage.commit import carry_through
from holdfast_storage.loop import get_loop

T = TypeVar("T")


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
        job: The processes that save together; one of them decides.
        policy: When to save.
        context: Options.
        root_metadata: Stored once for the run.

    Attributes:
        decisions: What would become of a step.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        retention: Retention,
        quarantine: Quarantine,
        lease: WritingLease,
        job: Job,
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
        self._job = job
        self._context = context
        self._root_metadata = root_metadata
        self._lock = threading.RLock()
        self._current: _Running | None = None
        self._deletion: AsyncResponse[bool] | None = None
        self._closed = False
        self.decisions = Decisions(run, known, job, policy, context, self._turn, self._step_saved)

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
        self._job.require_current(self._context)
        self._refuse_in_callback()
        with self._lock:
            self._check_open()
            if self.is_saving(step):
                self.wait_for_save()  # its outcome decides about this one
            decision = self.decisions.decide(
                step,
                metrics,
                force=force,
                overwrite=overwrite,
                failed=self._earlier_failure(f"step {step} was not saved"),
            )
            if decision.skip:
                return SaveResponse.declined(step, decision.skip)
            name, what = decision.name, f"the save of step {step} in {self._run.label}"
            with call_of(lambda: self._context) as call:
                self._known.expect(step)
                self._wait_for_what_runs()
                self._raise_earlier_failure(f"step {step} was not saved")
                termination.require_time(what)
                contents = stage()
            # The caller may change them meanwhile.
            kept = copy.deepcopy(metrics) if self._job.alone else decision.metrics
            response = attended(
                contents,
                lambda: SaveResponse(
                    step,
                    self._write(step, name, contents, kept, call, overwrite=overwrite),
                    what=what,
                    deadline=self._context.asynchronous.timeout_secs,
                    afterwards=self._context.asynchronous.post_finalization_callback,
                ),
            )
            self._current = _Running(step, response)
            return response

    def _turn(
        self,
        call: str,
        decide: Callable[[Said], T],
        *,
        said: Any = None,
        failed: Exception | None = None,
    ) -> T:
        """As `Job.turn`; the failure of a save is told once on every process."""

        def late() -> Exception | None:
            self.wait_for_save()  # it fails here as well, or has
            return self._earlier_failure()

        return self._job.turn(call, decide, said=said, failed=failed, late=late)

    def delete(self, step: int, item: str | None, *, missing_ok: bool) -> AsyncResponse[bool]:
        """Removes one step, or an item of it, by name; see `Checkpointer.delete_async`."""
        self._refuse_in_callback()
        with self._lock:
            self._check_open()
            self._wait_for_what_runs()
            failed = self._earlier_failure(f"step {step} was not removed")
            found: list[CheckpointMetadata] = []
            before = self._known.what_is_known(step)

            def decide(_: Said) -> str | None:
                try:
                    entry = self._known.resolve(step)
                except StepNotFoundError:
                    if missing_ok:
                        return None
                    raise
                get_loop().run(self._retention.require_unpinned(entry.step))
                if item is None:
                    self._known.drop(entry)
                found.append(entry)
                return str(entry.path)

            path = self._turn(f"delete({step}, {item!r})", decide, failed=failed)
            if path is None:
                return AsyncResponse.completed(False)

            def remove() -> Coroutine[Any, Any, bool]:
                (entry,) = found
                if item is not None:
                    return self._remove_item(entry.name, item, missing_ok=missing_ok)
                return self._retention.delete(entry, missing_ok=missing_ok)

            what = f"the removal of {item or path}"
            work = self._job.by_primary(what, remove)
            if not self._job.decides:
                work = self._awaited(work, before)
            self._deletion = AsyncResponse(work, what=what)
            return self._deletion

    async def _awaited(
        self, removal: Coroutine[Any, Any, bool], before: CheckpointMetadata | Aside | None
    ) -> bool:
        """The removal by the primary; a step that it did not remove is listed again."""
        try:
            return await removal
        except BaseException as error:
            if before is not None and not isinstance(error, FileNotFoundError):
                self._known.adopt(before)
            raise

    def cancel(self) -> bool:
        """Stops the background save, unless its commit has begun; says whether it stopped.

        Raises:
            Exception: What the save failed with before it could be stopped.
        """
        try:
            stopped = self._turn("cancel()", lambda _: self._cancel())
        except Exception:
            nearer = self._stopped_too()
            if nearer is not None:
                raise nearer from None
            raise
        if stopped:
            self._stopped_too()  # that it was stopped, as the caller asked
        return stopped

    def _stopped_too(self) -> Exception | None:
        """What the save that the primary has stopped failed with in this process."""
        if self._job.decides:
            return None
        self.wait_for_save()
        return self._earlier_failure()

    def _cancel(self) -> bool:
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

    def _step_saved(self) -> int | None:
        current = self._current
        return current.step if current is not None and self.is_saving() else None

    def wait(self) -> None:
        """Waits for the background save and the removal of old steps; raises failures once."""
        self._end("wait()")

    def close(self) -> None:
        """Waits as `wait` does, and a while for data to be deleted; then saves no more."""
        self._refuse_in_callback()
        with self._lock:  # a save that is being begun is waited for as well
            closed, self._closed = self._closed, True
        try:
            if not closed or self._job.alone:
                self._end("close()")
        finally:
            self._retention.close()
            self._lease.close()

    def leave(self, error: BaseException) -> None:
        """Closes because of an error of the caller's; the other processes are told of it."""
        if self._job.alone:
            self.close()
            return
        with self._lock:
            closed, self._closed = self._closed, True
        try:
            if not closed:
                self._job.leave(error)
            self._wait_for_what_runs()
            self._retention.wait()
            self._raise_earlier_failure()
        finally:
            self._retention.close()
            self._lease.close()

    def _end(self, call: str) -> None:
        self._wait_for_what_runs()
        if self._job.alone:
            self._retention.wait()
        # In turn, so that the others see that the primary, which has to wait, gets on.
        self._turn(call, lambda _: self._retention.wait(), failed=self._earlier_failure())

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

    def _refuse_in_callback(self) -> None:
        """Before the lock: who has it may wait for the save whose callback this is."""
        if self._current is not None:
            self._current.response.refuse_in_callback()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the checkpointer of {self._run.label} is closed")

    def _earlier_failure(self, consequence: str = "") -> Exception | None:
        """As `_raise_earlier_failure`, for who raises it later."""
        try:
            self._raise_earlier_failure(consequence)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            return error
        return None

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
        call: Call | None,
        *,
        overwrite: bool,
    ) -> SaveResult:
        async def around(commit: Commit) -> CommitRecord:
            """What only one process does; the others wait for the attempt that it begins."""
            async with self._lease.writing():
                record = await self._commit(step, commit, overwrite=overwrite)
                # What is committed is never called stopped, or late.
                await carry_through(self._note_commit(step, name, record, metrics))
                return record

        record = await write_checkpoint(
            self._run.backend,
            name,
            contents,
            replace=overwrite,
            context=self._context,
            call=call,
            around=around,
        )
        if self._job.decides:
            self._retention.start()
        else:
            self._take_in(step, name, record, metrics)
        return SaveResult(step, saved=True)

    async def _commit(self, step: int, commit: Commit, *, overwrite: bool) -> CommitRecord:
        replace = overwrite or await self._quarantine.may_replace(step)
        if replace:
            await self._retention.require_unpinned(step)
        if self._root_metadata is not None and not self._retention.swept:
            await self._run.write_root_metadata(self._root_metadata)
        try:
            return await commit(replace)
        except CommitConflictError as error:
            if replace:
                raise
            raise StepAlreadyExistsError(step, self._run.label) from error

    async def _note_commit(
        self, step: int, name: str, record: CommitRecord, metrics: Mapping[str, Any] | None
    ) -> None:
        replaced = self._known.aside(step)
        self._take_in(step, name, record, metrics)
        await self._run.note_commit(self._run.describe(step, record.committed_ns, name))
        if replaced is not None:
            self._retention.forget_mark(name, unless=record.attempt)

    def _take_in(
        self, step: int, name: str, record: CommitRecord, metrics: Mapping[str, Any] | None
    ) -> None:
        entry = self._run.describe(step, record.committed_ns, name)
        entry.take_metrics(metrics)
        self._known.add(entry)
