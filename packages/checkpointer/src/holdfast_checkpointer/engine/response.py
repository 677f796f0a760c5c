"""Handles of background work: `AsyncResponse`, and the join at interpreter exit."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import concurrent.futures.thread  # registers its exit hook before ours, so ours runs first
import logging
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Self, TypeVar

from holdfast_storage.commit import carry_through
from holdfast_storage.loop import get_loop

T = TypeVar("T")
_log = logging.getLogger(__name__)


class AsyncResponse(Generic[T]):
    """The outcome of a save or load that runs in the background.

    Awaitable, and usable from any thread. A failure is told by `result`, `exception` and
    `await`; one that nobody asked for is written to stderr when the interpreter exits,
    which waits for running saves.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> response = hf.save_async("memory://doc/response", {"w": np.ones(3)})
        >>> response.result()
        >>> response.done()
        True
    """

    def __init__(
        self,
        coroutine: Coroutine[Any, Any, T],
        *,
        what: str,
        deadline: float | None = None,
        afterwards: Callable[[], Any] | None = None,
    ) -> None:
        self._prepare(what, afterwards)
        _outstanding.add(self)
        get_loop().submit(self._run(coroutine, deadline))

    @classmethod
    def completed(cls, value: T) -> Self:
        """A response whose work needed no doing."""
        response = cls.__new__(cls)
        response._prepare("nothing")
        response._future.set_result(value)
        return response

    def _prepare(self, what: str, afterwards: Callable[[], Any] | None = None) -> None:
        self._what = what
        self._afterwards = afterwards
        self._future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._future.set_running_or_notify_cancel()  # an awaiter's cancellation is its own
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._observed = False
        self._lock = threading.Lock()

    async def _run(self, coroutine: Coroutine[Any, Any, T], deadline: float | None) -> None:
        with self._lock:
            self._task = asyncio.current_task()
            cancelled = self._cancelled
        try:
            if cancelled:
                coroutine.close()
                raise asyncio.CancelledError
            value = await self._within(deadline, coroutine)
            await self._tell(self._afterwards)
        except asyncio.CancelledError:
            self._observed = True
            self._finish(lambda: self._future.set_exception(concurrent.futures.CancelledError()))
        except BaseException as error:  # noqa: BLE001 - it is handed on, whatever it is
            failure = error
            self._finish(lambda: self._future.set_exception(failure))
        else:
            self._finish(lambda: self._future.set_result(value))

    async def _within(self, deadline: float | None, coroutine: Coroutine[Any, Any, T]) -> T:
        try:
            async with asyncio.timeout(deadline) as limit:
                return await coroutine
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"{self._what} took longer than {deadline} s") from error

    async def _tell(self, callback: Callable[[], Any] | None) -> None:
        """Calls back before the response is done: whoever waited for it knows it was called.

        What is done is done: neither an error nor a cancellation of this undoes the work.
        """
        if callback is None:
            return

        def call() -> None:
            try:
                callback()
            except BaseException:  # noqa: BLE001 - it is the caller's; the work has succeeded
                _log.exception("the callback after %s failed", self._what)

        await carry_through(_call_aside(call))

    def _finish(self, settle: Callable[[], None]) -> None:
        self._task = None
        settle()
        _outstanding.settled(self)

    def result(self, timeout: float | None = None) -> T:
        """Waits and returns the value.

        Args:
            timeout: In seconds; None waits as long as the work takes.

        Raises:
            TimeoutError: Still running; ask again later.
            concurrent.futures.CancelledError: `cancel` won.
            Exception: What the work raised, with its own type.
        """
        self._check_may_wait()
        try:
            value = self._future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                self._observe()
                raise
            raise TimeoutError(f"{self._what} is still running after {timeout} s") from None
        except BaseException:
            self._observe()
            raise
        return value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits and returns what the work raised, or None if it succeeded."""
        self._check_may_wait()
        error = self._future.exception(timeout)
        if error is not None:
            self._observe()
        return error

    def wait(self, timeout: float | None = None) -> bool:
        """Waits without asking for the outcome; says whether the work has ended."""
        self._check_may_wait()
        return bool(concurrent.futures.wait([self._future], timeout).done)

    @property
    def observed(self) -> bool:
        """Whether somebody has been told the outcome (a success needs no telling)."""
        return self._observed or (self.done() and self._future.exception() is None)

    def done(self) -> bool:
        """Whether the work has ended, well or not."""
        return self._future.done()

    def cancel(self) -> bool:
        """Asks the work to stop; `result` says whether it did.

        A save that is stopped leaves nothing behind and nothing visible. Once the commit
        has begun it is carried through, and `result` returns as if nothing had been asked.

        Returns:
            False if the work had already ended.
        """
        with self._lock:
            if self._future.done():
                return False
            self._cancelled = True
            task = self._task
        if task is not None:
            get_loop().call_soon(task.cancel)
        return True

    def on_complete(self, callback: Callable[[T], None]) -> None:
        """Calls `callback` with the value once the work has succeeded (after the commit).

        It is not called on failure. It may call holdfast. An exception in it is logged,
        never raised elsewhere.
        """

        def call() -> None:
            try:
                callback(self._future.result())
            except Exception:  # noqa: BLE001 - it is the caller's, and the save has succeeded
                _log.exception("a callback of %s failed", self._what)

        def settled(future: concurrent.futures.Future[T]) -> None:
            if future.exception() is None:
                get_loop().run_outside(call)

        self._future.add_done_callback(settled)

    def add_done_callback(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when the work has ended, well or not, in whichever thread it does."""
        self._future.add_done_callback(lambda _: callback())

    def __await__(self) -> Generator[Any, None, T]:
        """Waits without blocking the running event loop."""
        try:
            return (yield from asyncio.wrap_future(self._future).__await__())
        finally:
            if self._future.done():
                self._observe()

    def _check_may_wait(self) -> None:
        if not self._future.done():
            get_loop().check_may_wait()

    def _observe(self) -> None:
        self._observed = True
        _outstanding.observed(self)


async def _call_aside(function: Callable[[], None]) -> None:
    """Calls a function that may block, and raises nothing, in a thread of its own.

    The loop's own workers must stay free: what the function calls may need them.
    """
    done: concurrent.futures.Future[None] = concurrent.futures.Future()

    def call() -> None:
        function()
        done.set_result(None)

    try:
        threading.Thread(target=call, name="holdfast-callback", daemon=True).start()
    except RuntimeError:  # the interpreter is ending, and starts no threads any more
        asyncio.get_running_loop().run_in_executor(None, call)
    await asyncio.wrap_future(done)


class _Outstanding:
    """Responses that still run, and failed ones that nobody has asked about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[AsyncResponse[Any]] = set()
        self._failed: set[AsyncResponse[Any]] = set()

    def add(self, response: AsyncResponse[Any]) -> None:
        with self._lock:
            self._running.add(response)

    def settled(self, response: AsyncResponse[Any]) -> None:
        with self._lock:
            self._running.discard(response)
            if not response._observed and response._future.exception() is not None:
                self._failed.add(response)

    def observed(self, response: AsyncResponse[Any]) -> None:
        with self._lock:
            self._failed.discard(response)

    def join(self) -> None:
        """Waits for everything that runs, then reports failures nobody has seen."""
        while True:
            with self._lock:
                running = list(self._running)
            if not running:
                break
            concurrent.futures.wait([response._future for response in running])
            for response in running:
                self.settled(response)
        with self._lock:
            failed, self._failed = list(self._failed), set()
        for response in failed:
            error = response._future.exception()
            print(  # noqa: T201 - logging may be gone by now, and this must be seen
                f"holdfast: {response._what} failed and nobody asked for its result: "
                f"{type(error).__name__}: {error}",
                file=sys.stderr,
            )


_outstanding = _Outstanding()
# Thread pools refuse work once `threading` shuts down, which is before `atexit` runs:
# a save that is still writing then could not finish. The hook is private, hence getattr.
getattr(threading, "_register_atexit", atexit.register)(_outstanding.join)
