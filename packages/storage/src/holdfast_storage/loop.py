"""One private event loop on one daemon thread, on which all storage work runs.

The public API is synchronous and works inside a running loop, in notebooks and from any
thread, because nothing of it runs on the caller's loop.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from holdfast_storage.threads import StartedPool

T = TypeVar("T")
_WORKERS = 4


class StorageLoop:
    """An event loop on a daemon thread of its own."""

    def __init__(self, name: str = "holdfast-storage") -> None:
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(StartedPool(_WORKERS, f"{name}-worker"))
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts a coroutine on the loop, from any thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Runs a coroutine on the loop and waits for it.

        Raises:
            RuntimeError: Called on the loop's own thread, where it would wait for itself.
            TimeoutError: It took longer than `timeout` seconds; it was cancelled.
        """
        try:
            self.check_may_wait()
        except RuntimeError:
            coroutine.close()
            raise
        future = self.submit(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def check_may_wait(self) -> None:
        """Refuses to block the loop's own thread, which would wait for itself.

        Raises:
            RuntimeError: Called on that thread.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError(
                "holdfast's blocking calls cannot be made from its own storage loop; use the "
                "*_async form there"
            )

    def run_outside(self, function: Callable[[], Any]) -> None:
        """Runs a function that may block: here, or in a worker if this is the loop's thread."""
        if threading.current_thread() is self._thread:
            self._loop.run_in_executor(None, function)
        else:
            function()

    def call_soon(self, function: Callable[[], Any]) -> None:
        """Calls a function on the loop's thread."""
        self._loop.call_soon_threadsafe(function)

    def stop(self) -> None:
        """Stops the loop and ends its thread; what still runs is abandoned."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


_loop: StorageLoop | None = None
_lock = threading.Lock()


def get_loop() -> StorageLoop:
    """The process's storage loop, started on first use (and anew after a fork)."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = StorageLoop()
        return _loop


def _forget_after_fork() -> None:
    """A forked child has the parent's loop but not its thread."""
    global _loop, _lock
    _loop = None
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
