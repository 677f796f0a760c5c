"""What runs in the background, so that nothing that was begun is lost without a word.

An interpreter that exits waits here for what runs. A save is bounded by its own deadline
(`AsyncOptions.timeout_secs`); who has less time says so with `HOLDFAST_EXIT_TIMEOUT_SECS`, or
interrupts the wait. Only `os._exit` and a kill go past this: a save that they cut off is swept
by the next process that saves there.
"""

from __future__ import annotations

import atexit
import concurrent.futures
import concurrent.futures.thread  # registers its exit hook before ours, so ours runs first
import math
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from holdfast_checkpointer.errors import AbandonedError
from holdfast_storage import lease as _lease  # noqa: F401 - as above: its hook runs after ours

if TYPE_CHECKING:
    from holdfast_checkpointer.engine.response import AsyncResponse

EXIT_TIMEOUT = "HOLDFAST_EXIT_TIMEOUT_SECS"
TIDYING_S = 5.0
SAYS_EVERY_S = 30.0


class Outstanding:
    """Responses that still run, and failed ones that nobody has asked about."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[AsyncResponse[Any]] = set()
        self._failed: set[AsyncResponse[Any]] = set()

    def add(self, response: AsyncResponse[Any]) -> None:
        """Takes in work that begins."""
        with self._lock:
            self._running.add(response)

    def settled(self, response: AsyncResponse[Any]) -> None:
        """Notes that work has ended, well or not."""
        with self._lock:
            self._running.discard(response)
            if not response.observed:
                self._failed.add(response)

    def observed(self, response: AsyncResponse[Any]) -> None:
        """Notes that somebody has been told of a failure."""
        with self._lock:
            self._failed.discard(response)

    def running(self) -> list[AsyncResponse[Any]]:
        """What has not ended."""
        with self._lock:
            return list(self._running)

    def forget(self) -> None:
        """In a forked child: the work is the parent's, and goes on there."""
        self.__init__()  # type: ignore[misc]  # the lock may be held by a thread that is not here

    def join(self) -> None:
        """At the exit: waits for everything that runs, then reports failures nobody has seen."""
        try:
            self._wait(_seconds_at_exit())
        except KeyboardInterrupt:
            self._interrupted()
        with self._lock:
            failed, self._failed = list(self._failed), set()
        for response in failed:
            error = response.exception()
            say(
                f"{response.what} failed and nobody asked for its result: "
                f"{type(error).__name__}: {error}"
            )

    def end_by(self, until: float, because: str) -> list[str]:
        """Sees that nothing runs any more at `until`; see `end_within`."""
        lost = []
        while running := self.running():
            lost += end_within(running, until, because)
        return lost

    def _interrupted(self) -> None:
        because = "the exit of the program was interrupted"
        try:
            say("interrupted; stopping what still runs")
            self.end_by(time.monotonic() + TIDYING_S, because)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is lost must still be told
            self.end_by(time.monotonic(), f"{because} twice")

    def _wait(self, seconds: float) -> None:
        began = time.monotonic()
        while running := self.running():
            if _wait_for(running, min(SAYS_EVERY_S, began + seconds - time.monotonic())):
                continue
            passed = time.monotonic() - began
            if passed >= seconds:
                until = time.monotonic() + TIDYING_S
                self.end_by(until, f"{EXIT_TIMEOUT}={seconds:g} of waiting at the exit are over")
            else:
                names = "; ".join(response.what for response in running)
                say(f"the exit has waited {passed:.0f} s for {names} (Ctrl-C stops that)")


def end_within(responses: list[AsyncResponse[Any]], until: float, because: str) -> list[str]:
    """Stops background work, and gives up what has not stopped in time.

    A save that is stopped leaves nothing behind. Each response tells what became of it, by an
    `AbandonedError`.

    Args:
        responses: The work.
        until: The time, by `time.monotonic`, after which nothing waits for it any more.
        because: Why, for messages.

    Returns:
        For all that was given up, what that means.
    """
    for response in responses:
        response.stop(AbandonedError(f"{response.what} was stopped: {because}"))
    _wait_for(responses, until - time.monotonic())
    lost = []
    for response in responses:
        told = (
            f"{response.what} was given up, for it did not stop: {because}. It may be committed "
            "yet; what is left of it otherwise is removed by the next process that saves there"
        )
        if response.give_up(AbandonedError(told)):
            lost.append(told)
    return lost


def wait_until(responses: list[AsyncResponse[Any]], until: float) -> bool:
    """Waits at most until a time by `time.monotonic`; says whether all have ended."""
    return _wait_for(responses, until - time.monotonic())


def _wait_for(responses: list[AsyncResponse[Any]], seconds: float) -> bool:
    limit = None if seconds == math.inf else max(0.0, seconds)
    futures = [response.future for response in responses]
    return not concurrent.futures.wait(futures, limit).not_done


def _seconds_at_exit() -> float:
    said = os.environ.get(EXIT_TIMEOUT)
    if not said:
        return math.inf
    try:
        seconds = float(said)
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        say(f"{EXIT_TIMEOUT}={said!r} is not a number of seconds; waiting as long as it takes")
        return math.inf
    return seconds


def say(words: str) -> None:
    """Tells the user, at whatever time."""
    # Logging may be gone by now, and this must be seen.
    print(f"holdfast: {words}", file=sys.stderr, flush=True)  # noqa: T201


outstanding = Outstanding()
# Thread pools refuse work once `threading` shuts down, which is before `atexit` runs:
# a save that is still writing then could not finish. The hook is private, hence getattr.
getattr(threading, "_register_atexit", atexit.register)(outstanding.join)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=outstanding.forget)
