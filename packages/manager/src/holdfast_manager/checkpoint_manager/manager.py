"""The checkpoints of one training run, behind the interface of Orbax's v0."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Self, SupportsIndex, TypeVar, overload

from holdfast_checkpointer.engine.desk import Desk, attended
from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.names import METRICS
from holdfast_checkpointer.engine.saving import Contents
from holdfast_checkpointer.functions import check_custom_metadata
from holdfast_checkpointer.handlers.registry import DefaultCheckpointHandlerRegistry
from holdfast_checkpointer.metadata import StepMetadata, describe_step
from holdfast_checkpointer.options import AsyncOptions, Context, current
from holdfast_manager.checkpoint_manager.items import (
    NamedCheckpointers,
    items_of_handlers,
    items_of_registry,
    refuse_two_ways,
    with_metrics,
)
from holdfast_manager.checkpoint_manager.names import DEFAULT_ITEM_NAME
from holdfast_manager.checkpoint_manager.options import CheckpointManagerOptions
from holdfast_manager.checkpoint_manager.policies import best_first, what_to_keep, when_to_save
from holdfast_manager.described import RootMetadata
from holdfast_manager.engine.contents import for_a_step
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.leaving import leave
from holdfast_manager.engine.results import SaveResult
from holdfast_manager.engine.run import Run, RunSettings
from holdfast_manager.errors import StepAlreadyExistsError
from holdfast_manager.place import Place
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata, check_step
from holdfast_manager.training.housekeeping import Housekeeping
from holdfast_manager.training.reports import Reports
from holdfast_storage import StorageBackend, UnsupportedOperationError
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
T = TypeVar("T")
Path = str | PathLike[str]
Body = Callable[[StoredCheckpoint], Awaitable[Any]]


class CheckpointManager(Housekeeping, Reports):
    """Saves and restores the steps of one run, with the interface of Orbax's v0.

    The same engine as `training.Checkpointer`, and the same promises: a step is listed once it
    is committed, the newest committed step is never collected, opening a run writes nothing.
    Methods may be called from any thread; one save runs at a time, and the next one waits for
    it.

    What is stored is said in one of four ways: by a `handler_registry`; by `item_names`, or
    `item_handlers` by item, or both; by one handler as `item_handlers`; or by `checkpointers`,
    as the oldest interface has it. Without any of them the handlers follow from the arguments
    of `save` and `restore`. There is either one item without a name, stored as `default`, or
    there are items with names, given in `args.Composite(...)`. If that was not said, the first
    save or the first step that is looked into decides it; then it stays.

    Args:
        directory: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        checkpointers: A `Checkpointer`, or a dict of them by item: their handlers, and the
            longest deadline, are taken.
        options: See `CheckpointManagerOptions`.
        metadata: A JSON object stored once for the run, at the first save.
        item_names: Names of items whose handlers follow from their arguments.
        item_handlers: Handlers by item, or the handler of the one item without a name.
        logger: Only None: holdfast logs to the logger `holdfast_manager` of the standard
            library.
        handler_registry: Handlers by item and arguments; it is copied.
        context: Further options; they win over an entered `Context`, and `options` wins over
            them.

    Raises:
        ValueError: What is stored was said in two ways, or an item cannot be called that.
        TypeError: A handler or `options` is none.
        NotImplementedError: A `logger` was given.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> options = hf.CheckpointManagerOptions(max_to_keep=2)
        >>> with hf.CheckpointManager("memory://doc/manager", options=options) as manager:
        ...     for step in range(4):
        ...         saved = manager.save(step, args=hf.args.StandardSave({"w": np.ones(2) * step}))
        ...     manager.wait_until_finished()
        ...     print(manager.all_steps(), manager.restore(manager.latest_step()))
        [2, 3] {'w': array([3., 3.])}
    """

    def __init__(
        self,
        directory: Path,
        checkpointers: Any = None,
        options: CheckpointManagerOptions | None = None,
        metadata: Mapping[str, Any] | None = None,
        item_names: Sequence[str] | None = None,
        item_handlers: Any = None,
        logger: None = None,
        handler_registry: DefaultCheckpointHandlerRegistry | None = None,
        *,
        context: Context | None = None,
    ) -> None:
        self._options = _checked(options)
        if logger is not None:
            raise NotImplementedError(
                f"logger={logger!r} is not offered: holdfast logs to the logger 'holdfast_manager' "
                "of the standard library; add a handler there"
            )
        if metadata is not None:
            check_custom_metadata(metadata)
        refuse_two_ways(checkpointers, item_names, item_handlers, handler_registry)
        groups = self._options.groups()
        self._background = self._options.enable_async_checkpointing
        if checkpointers is not None:
            older = NamedCheckpointers.of(checkpointers)
            self._items = with_metrics(older.handlers, unnamed=older.unnamed)
            self._background = self._background and older.background
            if older.timeout_secs is not None:
                groups.setdefault("asynchronous", AsyncOptions(timeout_secs=older.timeout_secs))
        elif item_names is not None or item_handlers is not None:
            self._items = items_of_handlers(item_names, item_handlers)
        else:
            self._items = items_of_registry(handler_registry)
        self._context = Context(current(context), **groups)
        self._metadata = None if metadata is None else copy.deepcopy(dict(metadata))
        self._run = self._opened(directory)

    def _opened(self, directory: Path) -> Run:
        options = self._options
        stores = options.save_root_metadata and not options.read_only
        settings = RunSettings(
            when_to_save(options),
            what_to_keep(options),
            options.names(),
            self._metadata if stores else None,
            takeover=options.takeover,
            trash=options.trash(),
            deletion=options.deletion(),
            marks=not options.read_only,
        )
        run = Run(self._context.open_backend(directory), self._context, settings)
        if options.cleanup_tmp_directories and not options.read_only:
            run.sweep()
        return run

    def __repr__(self) -> str:
        return f"CheckpointManager({str(self.directory)!r})"

    @property
    def directory(self) -> Place:
        """The run's folder: a URL or path as text, that `/` joins."""
        return Place(self._run.directory.label)

    def all_steps(self, read: bool = False) -> list[int]:
        """The committed steps in order, as of the last own commit or `reload`.

        Args:
            read: List the storage again, as `reload` does.
        """
        if read:
            self.reload()
        return [entry.step for entry in self._run.known.all()]

    def latest_step(self) -> int | None:
        """The newest committed step, or None."""
        latest = self._run.known.latest
        return None if latest is None else latest.step

    def best_step(self) -> int | None:
        """The best committed step by `best_fn`; without that, the newest.

        None if no step has metrics, or there is none at all.
        """
        ranking = best_first(self._options)
        if ranking is None:
            return self.latest_step()
        ranked = ranking.ranking(self._run.known.all())
        return ranked[-1].step if ranked else None

    def reload(self) -> None:
        """Lists the storage again, to see what other processes committed or removed."""
        self._run.reload()

    def reached_preemption(self, step: SupportsIndex) -> bool:
        """Whether JAX's preemption service says that the job saves at this step, and is stopped."""
        return self._run.saver.decisions.reached_preemption(check_step(step))

    def should_save(self, step: SupportsIndex) -> bool:
        """Whether `save` would save this step. Changes nothing."""
        number = check_step(step)
        return not self._options.read_only and self._run.saver.decisions.would_save(number)

    def save(
        self,
        step: SupportsIndex,
        items: Any = None,
        save_kwargs: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        force: bool = False,
        args: Any = None,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> SaveResult:
        """Takes a snapshot of a step and saves it: in the background, unless the options say no.

        The caller may change or donate its arrays as soon as this returns.

        Args:
            step: An integer >= 0.
            items: The item, or the items by name, for handlers that the manager was given; as
                the older interface has it. Give `args` instead.
            save_kwargs: Further arguments for `items`, or by name.
            metrics: A JSON object stored with the step.
            force: Save whatever the options say, also a step older than the latest. A step
                that is committed is not replaced.
            args: Arguments of a handler, such as `args.StandardSave(tree)`; of several items
                `args.Composite(name=...)`.
            custom_metadata: A JSON object stored with the step.

        Returns:
            What is true, and equal to True, if the step is being saved or was; else false,
            and says why in `reason`.

        Raises:
            StepAlreadyExistsError: It is committed, and `force` was given. Without, the
                result says so.
            TypeError: `step` is not an integer.
            ValueError: The arguments are not those of this manager's items, or something
                cannot be saved; nothing was written.
            Exception: What an earlier background save failed with, if nobody was told yet. This
                step was then not saved.
        """
        number = check_step(step)
        wanted = self._items.to_save(items, save_kwargs, args)
        if metrics is not None and METRICS in wanted:
            raise ValueError(f"an item is called {METRICS!r}, and metrics= is given: choose one")
        if custom_metadata is not None:
            check_custom_metadata(custom_metadata)
        if self._options.read_only:
            return SaveResult(number, saved=False, reason=f"{self.directory} is read-only here")
        if metrics is None and self._options.best_fn is not None:
            _log.warning("step %d has no metrics, so best_fn cannot rank it", number)
        stored = None if self._options.prevent_write_metrics else metrics

        def stage() -> Contents:
            staged = self._items.handler.stage_all(wanted, self._context)
            return Contents(staged, custom_metadata)

        saver = self._run.saver
        alone = self._run.job.alone  # or else this differs between the processes
        busy = alone and not force and saver.is_saving(number)
        if busy and (reason := saver.decisions.reason_to_skip(number)):
            return SaveResult(number, saved=False, reason=reason)
        try:
            response = saver.save(
                number,
                lambda: for_a_step(stage, stored),
                metrics=metrics,
                force=force,
                overwrite=False,
            )
        except StepAlreadyExistsError as error:
            if force:
                raise
            return SaveResult(number, saved=False, reason=str(error))
        if not response or not self._background:
            return response.result()
        return SaveResult(number, saved=True)

    def restore(
        self,
        step: SupportsIndex | None,
        items: Any = None,
        restore_kwargs: Mapping[str, Any] | None = None,
        directory: Path | None = None,
        args: Any = None,
        *,
        fallback: bool = False,
    ) -> Any:
        """Waits for the save that runs, then restores a step, verified.

        Args:
            step: A committed step; None is the latest.
            items: Targets for handlers that the manager was given, as the older interface has
                it. Give `args` instead.
            restore_kwargs: Further arguments for `items`, or by name.
            directory: Another run to restore from, whose folders are called in the same way.
            args: Arguments of a handler, such as `args.StandardRestore(target)`; of several
                items `args.Composite(name=...)`. None, also for a name, restores as was saved.
            fallback: If the step is damaged or not whole, restore the newest older one that is,
                as `training.Checkpointer.load` does; not with `directory`. `last_load` tells
                which step it was, and what was passed over. Orbax has no such argument.

        Returns:
            The item, or the items that were asked for, by default all, as an `args.Composite`.

        Raises:
            StepNotFoundError: It is not committed, a `FileNotFoundError`; the message lists the
                steps that are.
            NoGoodStepError: With `fallback`: there are steps, and each is damaged.
            KeyError: The step has no such item.
            ValueError: The arguments are not those of this manager's items, a target does not
                fit, the bytes are damaged, or `fallback` and `directory` were given.
            Exception: What the save that ran failed with, if nobody was told yet.
        """
        number = None if step is None else check_step(step)
        if fallback and directory is not None:
            raise ValueError(
                "fallback=True looks for a good step in the manager's own run: open a manager of "
                f"{directory} for that"
            )
        self._run.saver.wait_for_save()
        self._run.saver.check()
        handler = self._items.handler

        async def body(stored: StoredCheckpoint) -> Any:
            if self._items.unnamed is None:
                self._items.decide(unnamed=DEFAULT_ITEM_NAME in stored.items)
            wanted = self._items.to_restore(items, restore_kwargs, args)
            return await handler.fetch_all(stored, handler.prepare_inferred(wanted), self._context)

        if directory is None:
            found = self._load(number, body, fallback=fallback)
        else:
            found = self._load_elsewhere(directory, number, body)
        return found[DEFAULT_ITEM_NAME] if self._items.unnamed else found

    def delete(self, step: SupportsIndex) -> None:
        """Removes a step, also the newest; its data is deleted in the background.

        Waits for the save that runs. If the manager is read-only, nothing happens.

        Raises:
            StepNotFoundError: It is not committed, a `FileNotFoundError`.
            StepPinnedError: It is pinned; nothing was touched.
            StepBeingReadError: A process reads it; nothing was touched.
            NotImplementedError: Orbax wrote it, and it cannot be moved to the trash there.
        """
        number = check_step(step)
        if self._options.read_only:
            _log.warning("%s is read-only here: step %d stays", self.directory, number)
            return
        self._run.saver.delete(number, None, missing_ok=False).result()

    def item_metadata(self, step: SupportsIndex | None) -> Any:
        """Describes the item of a step, or its items by name: `metadata(step).item_metadata`.

        Raises:
            ValueError: No step was given.
            StepNotFoundError: It is not committed.
        """
        if step is None:
            raise ValueError("item_metadata describes the items of a step: give one")
        return self.metadata(step).item_metadata

    @overload
    def metadata(self, step: None = None) -> RootMetadata: ...
    @overload
    def metadata(self, step: SupportsIndex) -> StepMetadata: ...

    def metadata(self, step: SupportsIndex | None = None) -> RootMetadata | StepMetadata:
        """Describes a step without reading arrays; without a step, the run.

        Raises:
            StepNotFoundError: It is not committed.
        """
        if step is None:
            return self._root_metadata()
        entry = self._entry(step)
        backend = self._run.directory.backend
        self._decide(backend, entry)

        async def body(stored: StoredCheckpoint) -> StepMetadata:
            found = await describe_step(stored, self._items.handler)
            if not self._items.unnamed:
                return found
            stored.require_item(DEFAULT_ITEM_NAME)
            item = found.item_metadata[DEFAULT_ITEM_NAME]
            return dataclasses.replace(found, item_metadata=item)

        return self._read(backend, entry, body, "the description of")

    def metrics(self, step: SupportsIndex) -> Mapping[str, Any] | None:
        """The metrics saved with a step; None if none were.

        Raises:
            StepNotFoundError: It is not committed.
        """
        return self._entry(step).metrics

    def wait_until_finished(self) -> None:
        """Waits for the background save, and until surplus steps are un-committed.

        Raises:
            Exception: What the save failed with, if nobody was told yet.
        """
        self._run.saver.wait()

    def check_for_errors(self) -> None:
        """Raises what a background save failed with, if nobody was told yet; does not wait."""
        self._run.saver.check()

    def is_saving_in_progress(self) -> bool:
        """Whether a background save has not committed or failed yet."""
        return self._run.saver.is_saving()

    def close(self) -> None:
        """Waits as `wait_until_finished` does, and closes handlers; then nothing can be saved.

        Data of un-committed steps is still deleted for a while; the rest is left to the next
        process that saves to the run.

        Raises:
            Exception: What the save failed with, if nobody was told yet.
        """
        self._close(None)

    def _close(self, error: BaseException | None) -> None:
        try:
            self._run.saver.close() if error is None else self._run.saver.leave(error)
        finally:
            self._items.handler.close()

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
            leave(error, lambda: self._close(error))

    def _check_may_write(self) -> None:
        if self._options.read_only:
            raise UnsupportedOperationError(
                "this manager is read-only: nothing was done", root=self.directory
            )

    def _entry(self, step: SupportsIndex) -> CheckpointMetadata:
        """A committed step; one that is being saved is waited for."""
        number = check_step(step)
        self._run.saver.wait_for_save(number)
        return self._run.known.resolve(number)

    def _load(self, number: int | None, body: Body, *, fallback: bool) -> Any:
        backend, deadline = self._run.directory.backend, self._context.asynchronous.timeout_secs

        async def read(name: str) -> Any:
            return await read_checkpoint(backend, name, body)

        with Desk() as desk:
            response = self._run.loading.start(number, read, fallback=fallback, deadline=deadline)
            desk.attend(response)
        return response.result()

    def _load_elsewhere(self, directory: Path, number: int | None, body: Body) -> Any:
        """From another run, whose folders are called in the same way."""
        other = RunDirectory(self._context.open_backend(directory), self._options.names())
        known = KnownSteps(other)
        known.reload()
        return self._read(other.backend, known.resolve(number), body, "the restore of")

    def _decide(self, backend: StorageBackend, entry: CheckpointMetadata) -> None:
        """Learns from a step whether items have names, unless that is known."""
        if self._items.unnamed is None:

            async def body(stored: StoredCheckpoint) -> bool:
                return DEFAULT_ITEM_NAME in stored.items

            self._items.decide(unnamed=self._read(backend, entry, body, "looking into"))

    def _read(
        self,
        backend: StorageBackend,
        entry: CheckpointMetadata,
        body: Callable[[StoredCheckpoint], Awaitable[T]],
        what: str,
    ) -> T:
        return attended(
            read_checkpoint(backend, entry.name, body),
            what=f"{what} {entry.path}",
            deadline=self._context.asynchronous.timeout_secs,
        )

    def _root_metadata(self) -> RootMetadata:
        stored = get_loop().run(self._run.directory.read_root_metadata())
        given = self._metadata if self._options.save_root_metadata else None
        return RootMetadata(self.directory, stored or given or {})


def _checked(options: Any) -> CheckpointManagerOptions:
    if options is None:
        return CheckpointManagerOptions()
    if not isinstance(options, CheckpointManagerOptions):
        found = f"{type(options).__module__}.{type(options).__qualname__}"
        raise TypeError(f"options must be holdfast's CheckpointManagerOptions, got {found}")
    return options
