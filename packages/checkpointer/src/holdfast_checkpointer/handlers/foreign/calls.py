"""How methods of Orbax's protocol are called, and where."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import importlib
import logging
import pathlib
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from holdfast_checkpointer.engine.desk import away_from_desk, carried_through, current_desk
from holdfast_storage.threads import StartedPool

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Worker:
    """One thread for what handlers do in the background; it may block for as long as it likes."""

    def __init__(self) -> None:
        self._pool = StartedPool(1, "holdfast-handler")

    async def run(self, function: Callable[[], T]) -> T:
        """Runs a function in the thread; once it has begun, it is waited for."""
        context = contextvars.copy_context()

        def call() -> T:
            with away_from_desk():
                return function()

        submitted = self._pool.submit(context.run, call)
        return await carried_through(asyncio.wrap_future(submitted))

    async def make(self, make: Callable[[], T], undo: Callable[[T], None]) -> T:
        """Makes something in the thread; what nobody waits for any more is undone there."""
        made: list[T] = []

        def call() -> T:
            made.append(make())
            return made[0]

        try:
            return await self.run(call)
        except BaseException:
            for one in made:
                await self.run(functools.partial(undo, one))
            raise

    def end(self) -> None:
        """Lets the thread end when it has nothing to do."""
        self._pool.shutdown(wait=False)


async def where_called(function: Callable[[], T], worker: Worker) -> T:
    """Runs a function in the thread of the caller, if that attends; else in a worker."""
    desk = current_desk()
    return await (worker.run(function) if desk is None else desk.call(function))


def run_coroutine(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a coroutine to its end, in this thread unless an event loop runs in it."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return _run_here(make)
    outcome: list[Callable[[], T]] = []

    def work() -> None:
        try:
            value = _run_here(make)
        except BaseException as error:  # noqa: BLE001 - it is raised in the caller's thread
            outcome.append(functools.partial(_raise, error))
        else:
            outcome.append(lambda: value)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
    thread.start()
    thread.join()
    return outcome[0]()


def _run_here(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    # Not `asyncio.run`, which would take the thread's own event loop away.
    loop = asyncio.new_event_loop()
    try:
        value = loop.run_until_complete(make())
        loop.run_until_complete(loop.shutdown_asyncgens())
        return value
    finally:
        loop.close()


def _raise(error: BaseException) -> Any:
    raise error


def futures_in(returned: Any) -> list[Any]:
    """What a save has returned to be waited for.

    Raises:
        TypeError: It is neither None nor futures.
    """
    if returned is None:
        return []
    if isinstance(returned, list | tuple):
        return [future for one in returned for future in futures_in(one)]
    if not callable(getattr(returned, "result", None)):
        kind = type(returned).__name__
        raise TypeError(f"async_save returns futures, which have a method 'result'; got a {kind}")
    return [returned]


def wait_for(returned: Any) -> None:
    """Waits for every future; raises what the first one that failed raised."""
    failures = []
    for future in futures_in(returned):
        try:
            future.result()
        except Exception as error:  # noqa: BLE001 - the others must have ended before it is told
            failures.append(error)
    if failures:
        raise failures[0]


def give_up(futures: Sequence[Any]) -> None:
    """Asks futures to stop, and waits until each has ended in whatever way."""
    for future in futures:
        cancel = getattr(future, "cancel", None)
        if callable(cancel):
            cancel()
    for future in futures:
        with contextlib.suppress(Exception, concurrent.futures.CancelledError):
            future.result()


def as_path(folder: str) -> Any:
    """A folder as handlers expect it: an `epath.Path`, as in Orbax."""
    return _path_class()(folder)


@functools.cache
def _path_class() -> Any:
    try:
        return importlib.import_module("etils.epath").Path
    except ImportError:
        _log.warning(
            "etils is not installed (pip install 'etils[epath]'): handlers get a pathlib.Path in "
            "place of an epath.Path"
        )
        return pathlib.Path
