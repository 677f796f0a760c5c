"""A program that was told to end: since when, and how long its saves may still take."""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
import time

from holdfast_checkpointer.engine.outstanding import outstanding, say, wait_until
from holdfast_checkpointer.errors import AbandonedError

_log = logging.getLogger(__name__)
_TIDYING_S = 5.0


class Termination:
    """Whether the program was told to end, and the time that is left for its saves.

    What has not committed shortly before the deadline is stopped, by a thread of its own: the
    main thread may be anywhere.

    Args:
        deadline_secs: How long after the notice saves may run, in seconds.
    """

    def __init__(self, deadline_secs: float) -> None:
        self.deadline_secs = deadline_secs
        self.signal = int(signal.SIGTERM)
        self._since: float | None = None
        self._name = ""
        # Its `put` is the one that a signal handler may call, whatever it has interrupted.
        self._inbox: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._watch, name="holdfast-deadline", daemon=True)
        self._thread.start()

    @property
    def requested(self) -> bool:
        """Whether the notice has come."""
        return self._since is not None

    def notice(self, number: int, name: str) -> None:
        """The notice has come; the first one counts. Safe in a signal handler."""
        if self._since is None:
            self.signal, self._name, self._since = number, name, time.monotonic()
            self._inbox.put(True)

    def seconds_left(self) -> float:
        """Until the deadline; infinite before the notice, and 0 after the deadline."""
        if self._since is None:
            return math.inf
        return max(0.0, self._since + self.deadline_secs - time.monotonic())

    def reason(self) -> str:
        """For messages: why no time is left."""
        passed = time.monotonic() - (self._since or 0.0)
        return f"{self._name} came {passed:.1f} s ago, and saves have {self.deadline_secs:g} s"

    def finish(self) -> None:
        """Waits until what runs has ended, in the time that is left, and watches no more."""
        if self._since is not None:
            wait_until(outstanding.running(), self._since + self.deadline_secs)
        self._inbox.put(False)
        self._thread.join()

    def _watch(self) -> None:
        if not self._inbox.get():
            return
        assert self._since is not None
        until = self._since + self.deadline_secs
        _log.warning("%s: saves have %g s to commit", self._name, self.deadline_secs)
        stopping = until - min(_TIDYING_S, self.deadline_secs / 4)
        try:
            self._inbox.get(timeout=max(0.0, stopping - time.monotonic()))
        except queue.Empty:  # the time is over
            for lost in outstanding.end_by(until, self.reason()):
                say(lost)


_active: list[Termination] = []


def begin(deadline_secs: float) -> Termination:
    """A termination that saves heed until `end`."""
    termination = Termination(deadline_secs)
    _active.append(termination)
    return termination


def end(termination: Termination) -> None:
    """See `begin`."""
    _active.remove(termination)
    termination.finish()


def requested() -> bool:
    """Whether the program was told to end, and asked for that to be heeded."""
    return any(termination.requested for termination in _active)


def signal_seen() -> int:
    """The signal that told the program to end; 0 if none has, or nobody heeds it."""
    return next((one.signal for one in _active if one.requested), 0)


def notice_of_job(number: int) -> None:
    """Another process of the job has seen a signal."""
    for termination in _active:
        termination.notice(number, f"{signal.Signals(number).name} of a process of the job")


def notice_of_jax() -> None:
    """JAX's preemption service has named the step at which to save."""
    for termination in _active:
        termination.notice(signal.SIGTERM, "JAX's preemption service")


def patience(seconds: float) -> float:
    """At most `seconds`, and no more than what is left until a deadline."""
    return min([seconds, *(termination.seconds_left() for termination in _active)])


def require_time(what: str) -> None:
    """Refuses to begin what no time is left for.

    Raises:
        AbandonedError: The deadline has passed.
    """
    for termination in _active:
        if termination.seconds_left() == 0:
            raise AbandonedError(f"{what} was not begun: {termination.reason()}")
