"""Handles of background work: `AsyncResponse`."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine, Generator, Iterator
from typing import Any, Generic, Self, TypeVar

from holdfast_checkpointer.engine.outstanding import outstanding
from holdfast_storage.commit import carry_through
from holdfast_storage.loop import get_loop

T = TypeVar("T")
_log = logging.getLogger(__name__)
STOPPING_SECONDS = 30.0


class AsyncResponse(Generic[T]):
    """The outcome of a save or load that runs in the background.

    Awaitable, and usable from any thread. A failure is told by `result`, `exception` and
    `await`, with a note that says what failed; one that nobody asked for is written to stderr
    when the interpreter exits, which waits for running saves.

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
        outstanding.add(self)
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
        self._reason: BaseException | None = None  # why it is to stop, if it is
        self._observed = False
        self._calling: int | None = None  # the thread of the callback, while it runs
        self._asking = 0  # how many wait for the outcome, and so will be told
        self._lock = threading.Lock()

    async def _run(self, coroutine: Coroutine[Any, Any, T], deadline: float | None) -> None:
        with self._lock:
            self._task = asyncio.current_task()
            stopped = self._reason is not None
        try:
            if stopped:
                coroutine.close()
                raise asyncio.CancelledError
            value = await self._within(deadline, coroutine)
            await self._tell(self._afterwards)
        except asyncio.CancelledError:
            reason = self._reason or concurrent.futures.CancelledError()
            self._observed = isinstance(reason, concurrent.futures.CancelledError)
            self._finish(lambda: self._future.set_exception(reason))
        except BaseException as error:  # noqa: BLE001 - it is handed on, whatever it is
            failure = error
            failure.add_note(f"(during {self._what})")
            self._finish(lambda: self._future.set_exception(failure))
        else:
            self._finish(lambda: self._future.set_result(value))

    async def _within(self, deadline: float | None, coroutine: Coroutine[Any, Any, T]) -> T:
        if deadline is None:
            return await coroutine
        late = TimeoutError(
            f"{self._what} took longer than {deadline} s, and did not stop in the "
            f"{STOPPING_SECONDS} s after that: it was given up"
        )
        last = asyncio.get_running_loop().call_later(
            deadline + STOPPING_SECONDS, self.give_up, late
        )
        try:
            async with asyncio.timeout(deadline) as limit:
                return await coroutine
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(f"{self._what} took longer than {deadline} s") from error
        finally:
            last.cancel()

    async def _tell(self, callback: Callable[[], Any] | None) -> None:
        """Calls back before the response is done: whoever waited for it knows it was called.

        What is done is done: neither an error nor a cancellation of this undoes the work.
        """
        if callback is None:
            return

        def call() -> None:
            self._calling = threading.get_ident()
            try:
                callback()
            except BaseException:  # noqa: BLE001 - it is the caller's; the work has succeeded
                _log.exception("the callback after %s failed", self._what)
            finally:
                self._calling = None

        await carry_through(_call_aside(call))

    def _finish(self, settle: Callable[[], None]) -> None:
        self._task = None
        try:
            settle()
        except concurrent.futures.InvalidStateError:
            _log.warning("%s, which had been given up, has ended after all", self._what)
        else:
            outstanding.settled(self)

    def result(self, timeout: float | None = None) -> T:
        """Waits and returns the value.

        Args:
            timeout: In seconds; None waits as long as the work takes.

        Raises:
            TimeoutError: Still running; ask again later.
            concurrent.futures.CancelledError: `cancel` won.
            Exception: What the work raised, with its own type.
        """
        error = self.exception(timeout)
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame
        return self._future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Waits and returns what the work raised, or None if it succeeded."""
        self._check_may_wait()
        with self._somebody_asks():
            try:
                error = self._future.exception(timeout)
            except concurrent.futures.TimeoutError:
                raise TimeoutError(f"{self._what} is still running after {timeout} s") from None
            self._told()
            return error

    def raise_untold(self) -> None:
        """Raises what the work failed with, unless somebody has been told or is about to be."""
        if not self.done() or self._future.exception() is None:
            return
        with self._lock:
            if self._observed or self._asking:
                return
            self._observed = True
        self.result()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits without asking for the outcome; says whether the work has ended."""
        self._check_may_wait()
        return bool(concurrent.futures.wait([self._future], timeout).done)

    async def ended(self) -> None:
        """Waits on the storage loop as `wait` does, however the work ends."""
        waiting = asyncio.wrap_future(self._future)
        await asyncio.wait([waiting])
        if not waiting.cancelled():
            waiting.exception()  # or asyncio says that nobody has asked

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
        return self.stop(concurrent.futures.CancelledError())

    def stop(self, reason: BaseException) -> bool:
        """As `cancel`, but what the work raises if it stops is `reason`."""
        with self._lock:
            if self._future.done():
                return False
            self._reason = self._reason or reason
            task = self._task
        if task is not None:
            get_loop().call_soon(task.cancel)
        return True

    def give_up(self, reason: BaseException) -> bool:
        """Ends the wait for work that does not stop; whoever waits for it gets `reason`.

        The work itself may go on. A save is crash-safe: it commits yet, or is swept.

        Returns:
            False if the work had already ended.
        """
        try:
            self._future.set_exception(reason)
        except concurrent.futures.InvalidStateError:
            return False
        outstanding.settled(self)
        return True

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._what}: {self._state()}>"

    def _state(self) -> str:
        if not self.done():
            return "running"
        error = self._future.exception()
        return "done" if error is None else f"failed with {type(error).__name__}"

    @property
    def what(self) -> str:
        """What is done, for messages."""
        return self._what

    @property
    def future(self) -> concurrent.futures.Future[T]:
        """Ends when the work does; only to be waited for."""
        return self._future

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
        with self._somebody_asks():
            waiting = asyncio.wrap_future(self._future)
            try:
                return (yield from waiting.__await__())
            finally:
                if waiting.done() and not waiting.cancelled():
                    self._told()

    def _check_may_wait(self) -> None:
        if not self._future.done():
            get_loop().check_may_wait()
            self.refuse_in_callback()

    def refuse_in_callback(self) -> None:
        """Refuses what would wait for the work in the callback that the work itself waits for.

        Raises:
            RuntimeError: Called in that callback.
        """
        if self._calling == threading.get_ident():
            raise RuntimeError(
                f"the callback after {self._what} cannot wait for it, nor save, delete or close "
                "there: the save is done once the callback has returned. Use on_complete of the "
                "response for that"
            )

    @contextlib.contextmanager
    def _somebody_asks(self) -> Iterator[None]:
        """While the block waits for the outcome, nobody else need be told of a failure."""
        with self._lock:
            self._asking += 1
        try:
            yield
        finally:
            with self._lock:
                self._asking -= 1

    def _told(self) -> None:
        self._observed = True
        outstanding.observed(self)


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
