"""Thread pools whose threads exist from the start, and hold up no exit.

From CPython 3.12 on no thread can be started once the main thread has ended, which is
when a save that is still running is waited for. A pool that starts its threads on demand
would fail the save there. And the standard library's pools make the interpreter wait for
their threads: one that hangs in a system call, on a dead network mount for example, would
hold the process for ever after the save has been given up.
"""

from __future__ import annotations

import concurrent.futures
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

T = TypeVar("T")
P = ParamSpec("P")


class StartedPool(concurrent.futures.ThreadPoolExecutor):
    """A `ThreadPoolExecutor` that never has to start a thread later; its threads are daemons.

    Whoever needs what is submitted to be done before the process ends waits for its future.

    Args:
        threads: How many.
        name: Prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        # Not the base's own: asyncio asks for its class, and everything else is done here.
        self._calls: _Calls = queue.SimpleQueue()
        self._started = [
            threading.Thread(target=_serve, args=(self._calls,), name=f"{name}_{n}", daemon=True)
            for n in range(threads)
        ]
        for thread in self._started:
            thread.start()
        self._end = weakref.finalize(self, _end, self._calls, threads)
        self._end.atexit = False

    def submit(
        self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> concurrent.futures.Future[T]:
        """Queues a call.

        Raises:
            RuntimeError: The pool was shut down.
        """
        if not self._end.alive:
            raise RuntimeError("the pool was shut down")
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._calls.put((future, lambda: fn(*args, **kwargs)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Lets the threads end when they have done what is queued.

        Args:
            wait: Return only then.
            cancel_futures: What has not begun is not done.
        """
        if cancel_futures:
            while (call := _next(self._calls)) is not None:
                call[0].cancel()
        self._end()
        if wait:
            for thread in self._started:
                thread.join()


_Call = tuple[concurrent.futures.Future[Any], Callable[[], Any]]
_Calls = queue.SimpleQueue[_Call | None]


def _next(calls: _Calls) -> _Call | None:
    try:
        return calls.get_nowait()
    except queue.Empty:
        return None


def _end(calls: _Calls, threads: int) -> None:
    for _ in range(threads):
        calls.put(None)


def _serve(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        future, function = call
        if future.set_running_or_notify_cancel():
            try:
                value = function()
            except BaseException as error:  # noqa: BLE001 - it is handed on, whatever it is
                future.set_exception(error)
            else:
                future.set_result(value)
                del value
        del call, future, function  # a thread that waits holds on to nothing
