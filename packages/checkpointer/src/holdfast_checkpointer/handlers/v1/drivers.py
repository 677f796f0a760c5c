"""How the engine drives handlers of named items: its own directly, others in a real folder."""

from __future__ import annotations

import abc
import asyncio
import functools
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine
from os import PathLike
from typing import Any

from holdfast_checkpointer.handlers.base import CheckpointHandler, Item
from holdfast_checkpointer.handlers.foreign.calls import (
    Worker,
    as_path,
    run_coroutine,
    where_called,
)
from holdfast_checkpointer.handlers.foreign.folders import ItemFolder, readable_folder
from holdfast_checkpointer.handlers.foreign.item import UsersItem
from holdfast_checkpointer.handlers.per_process import fitting
from holdfast_checkpointer.handlers.v1.builtin import EngineHandler, StatefulHandler
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context, FileOptions
from holdfast_storage import ReadArea
from holdfast_storage.commit import carry_through

_log = logging.getLogger(__name__)


class Driver(abc.ABC):
    """Saves, loads and describes one item with one handler."""

    @abc.abstractmethod
    def stage(self, checkpointable: Any, context: Context) -> Item:
        """The blocking half of a save."""

    @abc.abstractmethod
    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the item. `request` is what the engine's handler prepared, or the abstract item."""


class EngineDriver(Driver):
    """Drives one of holdfast's own handlers."""

    def __init__(self, handler: EngineHandler) -> None:
        self.handler = handler
        self.engine: CheckpointHandler = handler.engine()

    def stage(self, checkpointable: Any, context: Context) -> Item:
        """See `Driver.stage`."""
        staged = self.engine.stage(self.handler.saving(checkpointable), context)
        return Item(staged, self.engine.typestr())

    def prepare(self, abstract_checkpointable: Any, **fields: Any) -> Any:
        """Prepares a load, in the caller's thread."""
        return self.engine.prepare(self.handler.restoring(abstract_checkpointable, **fields))

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """See `Driver.fetch`."""
        return await self.engine.fetch(area, request, context)


class FolderDriver(Driver):
    """Drives a handler of a user's, in a folder of the attempt or in a spool.

    The body of `save` runs in the caller's thread, for what it reads may change as soon as the
    caller goes on; the awaitable it returns runs in the background.
    """

    def __init__(self, handler: Any) -> None:
        self.handler = handler

    def stage(self, checkpointable: Any, context: Context) -> Item:
        """See `Driver.stage`."""
        staged = _StagedObject(self.handler, checkpointable, context)
        return Item(staged, recorded_as(type(self.handler)))

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """See `Driver.fetch`."""
        job = Membership.of(context.multiprocessing)
        stateful = isinstance(self.handler, StatefulHandler)

        async def load(folder: str) -> Any:
            target = fitting(request, folder, job) if stateful else request
            loaded = await (await self.handler.load(as_path(folder), target))
            return request if stateful else loaded

        return await in_folder(area, context.file, load)


async def describe_item(handler: Any, area: ReadArea, name: str, context: Context) -> Any:
    """What a user's handler says an item holds; None, with a warning, if it says nothing."""

    async def metadata(folder: str) -> Any:
        return await handler.metadata(as_path(folder))

    try:
        return await in_folder(area, context.file, metadata)
    except Exception as error:  # noqa: BLE001 - it is the user's; the other items have metadata
        kind = type(handler).__name__
        _log.warning("item %r: %s gave no metadata: %r", name, kind, error)
        return None


async def in_folder(
    area: ReadArea, options: FileOptions, call: Callable[[str], Awaitable[Any]]
) -> Any:
    """Runs a user's coroutine on the item's files, which are compared with what was saved."""
    worker = Worker()
    try:
        async with readable_folder(area, options, worker) as folder:

            async def run() -> Any:
                return await call(folder)

            return await where_called(lambda: run_coroutine(run), worker)
    finally:
        worker.end()


def driver_of(handler: Any) -> Driver:
    """What drives a handler. A subclass of one of holdfast's may do anything: it gets a folder."""
    if isinstance(handler, EngineHandler) and type(handler).__module__ == EngineHandler.__module__:
        return EngineDriver(handler)
    return FolderDriver(handler)


def recorded_as(handler: type) -> str:
    """The handler string that a class is recorded by."""
    own = getattr(handler, "recorded_as", None)
    return own if isinstance(own, str) else f"{handler.__module__}.{handler.__qualname__}"


class CreatedPath:
    """A `PathAwaitingCreation` that need not wait: the folder is there."""

    def __init__(self, path: Any) -> None:
        self._path = path

    def __truediv__(self, name: str | PathLike[str]) -> CreatedPath:
        return CreatedPath(self._path / name)

    def __fspath__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return f"CreatedPath({str(self._path)!r})"

    @property
    def path(self) -> Any:
        """See `PathAwaitingCreation.path`."""
        return self._path

    async def await_creation(self) -> Any:
        """See `PathAwaitingCreation.await_creation`."""
        return self._path


class Stoppable:
    """A coroutine of a user's in a worker's thread, which is cancelled when its save is.

    Args:
        make: Makes it.
    """

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._stopped = False
        self._stop: Callable[[], Any] | None = None

    async def run(self, worker: Worker) -> None:
        """Runs it. If this is cancelled, it is too, and has ended when this raises."""
        running = asyncio.ensure_future(worker.run(lambda: run_coroutine(self._run)))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            self._cancel()
            await carry_through(_ended(running))
            raise

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        with self._lock:
            self._stop = functools.partial(loop.call_soon_threadsafe, task.cancel)
            if self._stopped:
                task.cancel()
        try:
            await self._make()
        finally:
            with self._lock:
                self._stop = None  # the loop closes

    def _cancel(self) -> None:
        with self._lock:
            self._stopped = True
            if self._stop is not None:
                self._stop()


async def _ended(task: asyncio.Future[Any]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen: what is told is that the save was stopped


class _StagedObject(UsersItem):
    """An item that a user's handler will save."""

    def __init__(self, handler: Any, checkpointable: Any, context: Context) -> None:
        super().__init__(context)
        self._handler = handler
        self._checkpointable = checkpointable
        self._writes: Any = None

    async def _save(self, worker: Worker, folder: ItemFolder) -> None:
        directory = CreatedPath(as_path(folder.path))

        async def save() -> None:
            with Context(self._context):
                self._writes = await self._handler.save(directory, self._checkpointable)

        await where_called(lambda: run_coroutine(save), worker)
        self._checkpointable = None
        await Stoppable(self._finished).run(worker)
        await folder.check(worker, finalized=True)

    async def _finished(self) -> None:
        writes = self._writes
        if not isinstance(writes, Awaitable):
            kind = type(self._handler).__name__
            raise TypeError(
                f"save of {kind} must return an awaitable that writes, got {type(writes).__name__}"
            )
        with Context(self._context):
            await writes

    async def _complete(self, worker: Worker, folder: ItemFolder) -> None:
        """It is complete when what was returned has been awaited."""

    async def discard(self) -> None:
        """See `StagedItem.discard`."""
        writes, self._writes = self._writes, None
        if inspect.iscoroutine(writes):
            writes.close()  # one that was never begun would be warned of
        await super().discard()
