"""Where background work asks for calls in the caller's own thread.

Storage work runs on a loop of its own, but code of users must run where they called: JAX's
default device and mesh belong to the thread, and what a save reads may change as soon as it
returns. So the caller sits at a desk until nothing more can be asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import queue
from collections.abc import Callable, Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_storage.loop import get_loop

T = TypeVar("T")
_TIDYING_SECONDS = 10.0


class Desk:
    """Takes calls from the storage loop while its thread attends.

    Work that starts inside the `with` block finds the desk by `current_desk`.

    Args:
        expected: After how many calls the desk closes; None leaves it open until the work
            ends.
    """

    def __init__(self, expected: int | None = None) -> None:
        self._asked: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._expected = expected

    def __enter__(self) -> Self:
        self._token = _desk.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _desk.reset(self._token)

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function in the attending thread; raises what it raises.

        A call that has begun is waited for even if this is cancelled: code in a thread cannot
        be stopped, and what it writes to must not be removed under its hands.
        """
        asked = _Call(function, asyncio.get_running_loop())
        self._asked.put(asked)
        return await carried_through(asked.done, asked.withdraw)

    def attend(self, response: AsyncResponse[Any]) -> None:
        """Runs what is asked for, in this thread, until the desk closes or the work has ended."""
        if self._expected == 0:
            return
        response.add_done_callback(lambda: self._asked.put(None))
        try:
            get_loop().check_may_wait()
        except RuntimeError:
            response.cancel()
            raise
        try:
            self._answer()
        except BaseException:
            response.cancel()
            response.wait(_TIDYING_SECONDS)  # nothing of it is left when the caller goes on
            raise

    def _answer(self) -> None:
        answered = 0
        while self._expected is None or answered < self._expected:
            asked = self._asked.get()
            if asked is None:
                return
            with away_from_desk():  # a call may itself save or restore
                asked.run()
            answered += 1


def attended(work: Coroutine[Any, Any, T], **about: Any) -> T:
    """Runs work on the storage loop, and at the desk what it asks for; returns its value.

    Args:
        work: Not started.
        **about: Further arguments of `AsyncResponse`.
    """
    with Desk() as desk:
        response = AsyncResponse(work, **about)
        desk.attend(response)
    return response.result()


class _Call:
    """One function to run, and where its outcome is awaited."""

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._function = function
        self._loop = loop
        self._state: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._state.put(True)  # taken by whoever is first: the thread, or a withdrawal
        self.done: asyncio.Future[Any] = loop.create_future()

    def withdraw(self) -> bool:
        """Takes the call back; False if it has begun."""
        try:
            self._state.get_nowait()
        except queue.Empty:
            return False
        return True

    def run(self) -> None:
        if not self.withdraw():
            return
        try:
            value = self._function()
        except BaseException as error:
            told = _awaitable(error)
            self._settle(lambda: self.done.set_exception(told))
            if not isinstance(error, Exception):
                raise
        else:
            self._settle(lambda: self.done.set_result(value))

    def _settle(self, settle: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(settle)


async def carried_through(
    done: asyncio.Future[T], withdraw: Callable[[], bool] = lambda: False
) -> T:
    """Awaits what runs in a thread; if cancelled, only after it has ended or was withdrawn."""
    cancelled = False
    while not done.done():
        try:
            await asyncio.wait([done])
        except asyncio.CancelledError:
            cancelled = True
            if withdraw():
                done.cancel()
    if cancelled:
        if not done.cancelled():
            done.exception()  # seen
        raise asyncio.CancelledError
    return done.result()


def _awaitable(error: BaseException) -> BaseException:
    """What a future may hold: it refuses `StopIteration`, and an interrupt is the thread's."""
    if isinstance(error, StopIteration):
        return RuntimeError(f"the handler raised {error!r}")
    if not isinstance(error, Exception):
        return RuntimeError(f"the caller's thread was stopped by {type(error).__name__}")
    return error


_desk: contextvars.ContextVar[Desk | None] = contextvars.ContextVar("holdfast_desk", default=None)


@contextlib.contextmanager
def away_from_desk() -> Iterator[None]:
    """What starts in the block finds no desk: nobody would attend to it."""
    token = _desk.set(None)
    try:
        yield
    finally:
        _desk.reset(token)


def current_desk() -> Desk | None:
    """The desk at which the caller of this work sits, if it does."""
    return _desk.get()
