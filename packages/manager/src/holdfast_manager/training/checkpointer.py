"""The checkpoints of one training run."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar

from holdfast_checkpointer import checkpointables as several
from holdfast_checkpointer import functions, options
from holdfast_checkpointer.engine.names import STATE, check_item_name
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import Contents
from holdfast_manager.described import DescribedCheckpoint, RootMetadata
from holdfast_manager.engine.contents import for_a_step
from holdfast_manager.engine.deletion import Deletion, Trash
from holdfast_manager.engine.known import step_of
from holdfast_manager.engine.leaving import leave
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.run import Run, RunSettings
from holdfast_manager.engine.verdicts import Verdict, best_by_policy
from holdfast_manager.place import Place
from holdfast_manager.policies.checks import check_policy
from holdfast_manager.policies.preservation_policies import PreservationPolicy, PreserveAll
from holdfast_manager.policies.save_decision_policies import (
    AnySavePolicy,
    ContinuousCheckpointingPolicy,
    InitialSavePolicy,
    PreemptionCheckpointingPolicy,
    SaveDecisionPolicy,
)
from holdfast_manager.step_names import NameFormat, check_name_format
from holdfast_manager.steps import CheckpointMetadata, check_step
from holdfast_manager.training.housekeeping import Housekeeping
from holdfast_manager.training.loads import Loads, number_of
from holdfast_manager.training.reports import Step
from holdfast_storage.loop import get_loop

T = TypeVar("T")


class Checkpointer(Loads, Housekeeping):
    """Saves and loads the steps of one run, on any storage.

    A step is listed once it is committed, never before. Opening a run writes nothing; the
    first save also removes what dead writers left behind. Methods may be called from any
    thread; one save runs at a time, and the next one waits for it. The processes of a job
    call them in the same order; one of them decides, and all know the same steps.

    Args:
        directory: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        context: Options for this run; they win over an entered `Context`.
        save_decision_policy: When to save. By default the first step, then whenever no save
            is under way, and when JAX's preemption service says so.
        preservation_policy: What to keep; by default everything. The newest committed
            step and pinned steps are never removed by it.
        step_name_format: How the folders of steps are called; by default by the step alone.
            See `holdfast.path.step`.
        custom_metadata: A JSON object stored once for the run, at the first save.
        cleanup_tmp_directories: Look at once, and not only at the first save, for what dead
            writers left; live writers and what holdfast did not write stay.
        lightweight_initialize: Makes no difference: what is known of a step is always read
            when it is first asked for.
        takeover: At the first save or removal, take the run from whatever job writes to it,
            without waiting; that job can then neither commit nor remove steps.
        trash: Where removed steps go, so that they can be restored; None deletes them.
        deletion: How fast data is deleted in the background.
        logger: Only None: holdfast logs to the logger `holdfast_manager` of the standard
            library.

    Raises:
        TypeError: A policy or the name format is none; the message says what one has.
        ValueError: `custom_metadata` is no JSON object.
        NotImplementedError: A `logger` was given.

    Examples:
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
        step_name_format: NameFormat | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
        cleanup_tmp_directories: bool = False,
        lightweight_initialize: bool = False,
        takeover: bool = False,
        logger: None = None,
        trash: Trash | None = None,
        deletion: Deletion | None = None,
    ) -> None:
        if custom_metadata is not None:
            functions.check_custom_metadata(custom_metadata)
        if logger is not None:
            raise NotImplementedError(
                f"logger={logger!r} is not offered: holdfast logs to the logger 'holdfast_manager' "
                "of the standard library; add a handler there"
            )
        names = None if step_name_format is None else check_name_format(step_name_format)
        when = _checked(
            "save_decision_policy", save_decision_policy, SaveDecisionPolicy, "should_save"
        )
        what = _checked(
            "preservation_policy", preservation_policy, PreservationPolicy, "should_preserve"
        )
        self._context = options.current(context)
        self._custom_metadata = copy.deepcopy(dict(custom_metadata or {}))
        settings = RunSettings(
            when or _by_default(),
            what or PreserveAll(),
            names,
            None if custom_metadata is None else self._custom_metadata,
            takeover=takeover,
            trash=_instance(trash, Trash, "trash"),
            deletion=_instance(deletion, Deletion, "deletion") or Deletion(),
        )
        self._run = Run(self._context.open_backend(directory), self._context, settings)
        if cleanup_tmp_directories:
            self._run.sweep()

    def __repr__(self) -> str:
        return f"training.Checkpointer({str(self.directory)!r})"

    @property
    def directory(self) -> Place:
        """The run's folder: a URL or path as text, that `/` joins."""
        return Place(self._run.directory.label)

    @property
    def step_name_format(self) -> NameFormat:
        """How the folders of steps are called."""
        return self._run.directory.name_format

    @property
    def checkpoints(self) -> Sequence[CheckpointMetadata]:
        """The committed steps in order, as of the last own commit or `reload`."""
        return self._run.known.all()

    @property
    def latest(self) -> CheckpointMetadata | None:
        """The newest committed step, or None."""
        return self._run.known.latest

    @property
    def best(self) -> CheckpointMetadata | None:
        """The best committed step, by the `BestN` in the preservation policy.

        None if no policy says what is best, or no step has metrics.
        """
        return best_by_policy(self._run.retention.policy, self._run.known.all())

    @property
    def pins(self) -> Mapping[str, int]:
        """The step of each pin, by the pin's name, as it is stored now."""
        return get_loop().run(self._run.holds.pins.read())

    def reload(self) -> None:
        """Lists the storage again, to see what other processes committed or removed."""
        self._run.reload()

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save this step. Changes nothing."""
        return self._run.saver.decisions.would_save(check_step(step))

    def reached_preemption(self, step: SupportsIndex) -> bool:
        """Whether this is the step at which a job that is about to be stopped saves and ends.

        So says JAX's preemption service, or a signal; see `save_on_termination`. Ask after
        `save`, for the same step.
        """
        return self._run.saver.decisions.reached_preemption(check_step(step))

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
            A handle that is false in a condition if the step was declined, and says why in
            `reason`; once the save has ended, `saved` tells how, without waiting.

        Raises:
            StepAlreadyExistsError: It is committed and `overwrite` is false.
            TypeError: `step` is not an integer.
            ValueError: Something cannot be saved; nothing was written.
            AbandonedError: The deadline of `save_on_termination` has passed.
            Exception: What an earlier background save failed with, if nobody has asked it
                yet, with a note of which save that was. This step was then not saved.
        """

        def stage() -> Contents:
            return functions.stage_state(state, checkpointable_name, custom_metadata, self._context)

        return self._save(step, stage, metrics, force=force, overwrite=overwrite)

    def save_checkpointables(
        self,
        step: SupportsIndex,
        checkpointables: Mapping[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> SaveResult:
        """Saves a step of several items and waits for the commit.

        See `save_async` and `holdfast.save_checkpointables`.
        """
        return self.save_checkpointables_async(
            step,
            checkpointables,
            force=force,
            overwrite=overwrite,
            metrics=metrics,
            custom_metadata=custom_metadata,
        ).result()

    def save_checkpointables_async(
        self,
        step: SupportsIndex,
        checkpointables: Mapping[str, Any],
        *,
        force: bool = False,
        overwrite: bool = False,
        metrics: Mapping[str, Any] | None = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> SaveResponse:
        """Takes a snapshot of several items and saves them as one step in the background.

        Args:
            step: An integer >= 0.
            checkpointables: The items by name, as `holdfast.save_checkpointables` takes them.
            force: As in `save_async`.
            overwrite: As in `save_async`.
            metrics: A JSON object stored with the step, as the item `metrics`.
            custom_metadata: A JSON object stored with the step.

        Returns:
            As `save_async`.

        Raises:
            ValueError: An item cannot be saved; it is named, and nothing was written.
            Exception: As `save_async`.
        """

        def stage() -> Contents:
            return several.stage_checkpointables(checkpointables, custom_metadata, self._context)

        return self._save(step, stage, metrics, force=force, overwrite=overwrite)

    def metadata(self, step: Step | None = None) -> DescribedCheckpoint:
        """Describes a step, by default the latest, without reading arrays.

        Raises:
            StepNotFoundError: It is not committed; the message lists the steps that are.
        """
        entry = self._run.known.resolve(number_of(step))
        found = functions.metadata_from(self._run.directory.backend, entry.name)
        return DescribedCheckpoint.of(found, entry)

    def checkpointables_metadata(self, step: Step | None = None) -> DescribedCheckpoint:
        """As `metadata`, where `metadata` is a dict of the items by name."""
        found = self.metadata(step)
        return dataclasses.replace(found, metadata=dict(found.items))

    def root_metadata(self) -> RootMetadata:
        """Describes the run: its folder, and the metadata stored for it.

        Before the first save that is the `custom_metadata` given here, which will be stored
        then unless another process comes first.
        """
        stored = get_loop().run(self._run.directory.read_root_metadata())
        return RootMetadata(self.directory, stored or self._custom_metadata)

    def pin(self, step: Step, name: str) -> None:
        """Keeps a step until `unpin(name)`: no policy removes it, in whatever process.

        The pin is stored beside the steps. Several pins may hold one step. A pinned step is
        neither deleted nor replaced by name before it is unpinned. Pinning the same step
        under the same name again changes nothing.

        Args:
            step: A committed step.
            name: One segment of a path, not starting with "." or "_".

        Raises:
            StepNotFoundError: It is not committed, or was removed at this moment.
            PinExistsError: The name holds another step.
            ValueError: A pin cannot be called that.

        Examples:
            >>> import holdfast as hf
            >>> keep = hf.training.preservation_policies.LatestN(1)
            >>> run = hf.training.Checkpointer("memory://doc/pins", preservation_policy=keep)
            >>> for step in range(3):
            ...     _ = run.save(step, {"step": step})
            ...     run.pin(step, "paper") if step == 0 else None
            >>> run.wait()
            >>> [entry.step for entry in run.checkpoints], run.pins
            ([0, 2], {'paper': 0})
            >>> run.close()
        """
        number = number_of(step)

        def pin() -> None:
            get_loop().run(self._run.holds.pins.pin(self._run.known.resolve(number), name))

        self._run.do(f"pin({number}, {name!r})", pin)

    def unpin(self, name: str) -> None:
        """Removes a pin; the step goes at the next commit if no other rule keeps it.

        Raises:
            PinNotFoundError: The run has no pin of that name; the message lists those it has.
        """
        self._run.do(f"unpin({name!r})", lambda: get_loop().run(self._run.holds.pins.unpin(name)))

    def reading(
        self, step: Step | None = None
    ) -> contextlib.AbstractContextManager[CheckpointMetadata]:
        """Keeps a step, by default the latest, while a block reads it.

        No policy removes the step meanwhile, in whatever process, nor `delete`. The reader says
        so by a small object in `_readers`, refreshed while the block runs, which counts for
        two minutes after a refresh; where the process may not write the step is not kept,
        which is said once in the log. A process that is stopped for longer may lose the step;
        what reads it then fails with `CheckpointDeletedError`. Replacing the step harms no
        reader and is not held up. A single `load` needs none of this unless it takes long
        and the step is about to go: it never returns anything that is not whole.

        Returns:
            A context manager that gives the step, as `checkpoints` lists it.

        Raises:
            StepNotFoundError: It is not committed, or was removed at this moment.

        Examples:
            >>> import holdfast as hf
            >>> with hf.training.Checkpointer("memory://doc/reading") as run:
            ...     saved = run.save(1, {"w": 0.5})
            ...     with run.reading(1) as entry:
            ...         state = run.load(entry.step)
            >>> state
            {'w': 0.5}
        """
        return self._run.holds.readers.reading(self._run.known.resolve(number_of(step)))

    def explain(self) -> Sequence[Verdict]:
        """Says for every step which rule keeps it, or that it would be collected now.

        Removes nothing and writes nothing. A policy may read metrics, times or sizes.

        Examples:
            >>> import holdfast as hf
            >>> with hf.training.Checkpointer("memory://doc/explain") as run:
            ...     saved = [run.save(step, {"step": step}) for step in (1, 2)]
            >>> for verdict in run.explain():
            ...     print(verdict.step, verdict.kept, *verdict.reasons, sep=", ")
            1, True, PreserveAll() keeps it
            2, True, it is the newest committed step, PreserveAll() keeps it
        """

        def judged() -> list[Any]:
            found = get_loop().run(self._run.retention.explain())
            return [[one.step, one.kept, list(one.reasons)] for one in found]

        told = self._run.do("explain()", judged)
        return [Verdict(step, kept, tuple(reasons)) for step, kept, reasons in told]

    def delete(
        self, step: Step, *, checkpointable_name: str | None = None, missing_ok: bool = False
    ) -> bool:
        """Removes a step or one item of it, the newest too if asked; see `delete_async`."""
        return self.delete_async(
            step, checkpointable_name=checkpointable_name, missing_ok=missing_ok
        ).result()

    def delete_async(
        self, step: Step, *, checkpointable_name: str | None = None, missing_ok: bool = False
    ) -> AsyncResponse[bool]:
        """Removes a step, or one item of it, in the background, after the save that runs.

        The step leaves `checkpoints` at once. It is un-committed first, when the response is
        done; its data is deleted behind that. A failure is raised by the response, or else
        by the next `save`, `wait` or `close`; the step is then listed again if it is there.

        Args:
            step: A committed step.
            checkpointable_name: The item to remove, as `holdfast.delete` does; None removes
                the step.
            missing_ok: Answer False instead of raising if it is not there.

        Returns:
            The response of whether it was there.

        Raises:
            StepNotFoundError: It is not committed.
            StepPinnedError: It is pinned; nothing was touched.
            StepBeingReadError: A process reads it; nothing was touched.
            CommitConflictError: It was saved anew, or brought back, at this moment; it stays.
            FileNotFoundError: The step has no such item.
            ValueError: The name is none, or the item is the last one.
            NotImplementedError: Orbax wrote the step, and what was asked for cannot be done with
                it: to remove one item, or to move it to the trash on storage that cannot.
        """
        if checkpointable_name is not None:
            check_item_name(checkpointable_name)
        return self._run.saver.delete(step_of(step), checkpointable_name, missing_ok=missing_ok)

    def cancel(self, step: Step | None = None) -> bool:
        """Stops the background save; it leaves nothing behind. Waits until that is settled.

        A save whose commit has begun is carried through.

        Args:
            step: Afterwards remove this step, as `delete` does, if it is committed.

        Returns:
            Whether a save was stopped or a step removed.

        Raises:
            StepPinnedError: `step` is pinned.
            Exception: What the save failed with before it could be stopped.
        """
        stopped = self._run.saver.cancel()
        removed = step is not None and self.delete(step, missing_ok=True)
        return stopped or removed

    def is_saving_in_progress(self) -> bool:
        """Whether a background save has not committed or failed yet."""
        return self._run.saver.is_saving()

    def wait(self) -> None:
        """Waits for the background save, and until surplus steps are un-committed.

        Raises:
            Exception: What the save failed with, if nobody has asked it yet.
        """
        self._run.saver.wait()

    def close(self) -> None:
        """Waits as `wait` does; afterwards nothing more can be saved.

        Data of un-committed steps is still deleted for a while; the rest is left to the next
        process that saves to the run.

        Raises:
            Exception: What the save failed with, if nobody has asked it yet.
        """
        self._run.saver.close()

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
        else:
            leave(error, lambda: self._run.saver.leave(error))

    def _save(
        self,
        step: SupportsIndex,
        stage: Callable[[], Contents],
        metrics: Mapping[str, Any] | None,
        *,
        force: bool,
        overwrite: bool,
    ) -> SaveResponse:
        def whole() -> Contents:
            return for_a_step(stage, metrics)

        return self._run.saver.save(
            check_step(step), whole, metrics=metrics, force=force, overwrite=overwrite
        )


def _by_default() -> SaveDecisionPolicy:
    return AnySavePolicy(
        [InitialSavePolicy(), ContinuousCheckpointingPolicy(), PreemptionCheckpointingPolicy()]
    )


def _checked(name: str, policy: Any, kind: type, method: str) -> Any:
    if policy is not None:
        check_policy(name, policy, kind, method)
    return policy


def _instance(value: T | None, kind: type[T], what: str) -> T | None:
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{what} is a training.{kind.__name__} or None, got {value!r}")
    return value
