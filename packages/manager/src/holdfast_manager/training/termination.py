"""SIGTERM: a last step is saved, and the program ends in time."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

from holdfast_manager.engine import termination
from holdfast_manager.engine.preemption import service_runs
from holdfast_manager.engine.termination import Termination
from holdfast_manager.policies.checks import check_seconds

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def save_on_termination(
    deadline_secs: float = 25.0, *, signals: Sequence[int] = (signal.SIGTERM,)
) -> Iterator[Termination]:
    """In the block, a signal to end makes the next step the last one, and gives saves a deadline.

    After the signal the next `save` of any `training.Checkpointer` (or `CheckpointManager`)
    saves whatever its policy says, and from that step on `reached_preemption` answers yes, at
    which the training loop ends. Within `deadline_secs` every running save, of whatever kind,
    has committed or was stopped and left nothing behind. One that does not even stop is given
    up, with a word on stderr. In either case its response, or the next `wait` or `close`, raises
    `AbandonedError`; a save after the deadline is refused with it.

    When the block is left after a signal, running saves are waited for in the time that is
    left; then the program ends with `SystemExit(128 + signal)`, as a shell reports a program
    that SIGTERM has ended, unless an exception is under way already. A handler in Python that
    was there before is called at the signal, and decides in place of that how the program ends.
    A second signal changes nothing.

    Where JAX's preemption service runs (`jax.distributed`), it keeps SIGTERM, and the deadline
    counts from the step that it names: all processes save the same one. Elsewhere it counts
    from the moment at which Python sees the signal, which is between two operations of the main
    thread and never within one.

    Args:
        deadline_secs: How long saves may take after the signal, in seconds. Kubernetes and most
            schedulers kill 30 s after SIGTERM.
        signals: The signals, for example `(signal.SIGTERM, signal.SIGUSR1)`.

    Yields:
        The state: `requested` says whether the signal has come, and `seconds_left()` how long
        saves may still take.

    Raises:
        ValueError: Not called in the main thread, which alone may install handlers; or an
            argument means nothing. Nothing was changed.

    Examples:
        >>> import holdfast as hf
        >>> with (
        ...     hf.training.save_on_termination(deadline_secs=25),
        ...     hf.training.Checkpointer("memory://doc/termination") as run,
        ... ):
        ...     for step in range(3):
        ...         saved = run.save(step, {"step": step})
        ...         if run.reached_preemption(step):
        ...             break
        >>> run.latest.step
        2
    """
    check_seconds("deadline_secs", deadline_secs)
    numbers = _checked(signals)
    if threading.current_thread() is not threading.main_thread():
        raise ValueError(
            "save_on_termination installs signal handlers, which only the main thread may; enter "
            f"it there, not in {threading.current_thread().name}"
        )
    state = termination.begin(float(deadline_secs))
    handlers = Handlers(state)
    handlers.install(numbers)
    try:
        yield state
    finally:
        try:
            termination.end(state)
        finally:
            handlers.restore()
    if state.requested and handlers.ends_program(state.signal):
        sys.exit(128 + state.signal)


class Handlers:
    """Handlers that only take note, and call those that were there before."""

    def __init__(self, state: Termination) -> None:
        self._state = state
        self._former: dict[int, Any] = {}

    def install(self, numbers: Sequence[int]) -> None:
        """Takes the place of the handlers, except of one that is not Python's."""
        for number in numbers:
            if number == signal.SIGTERM and service_runs():
                _log.info("JAX's preemption service listens to SIGTERM; it tells of it")
            elif (former := signal.getsignal(number)) is None:
                _log.warning("signal %d has a handler that is not Python's; it stays", number)
            else:
                self._former[number] = former
                signal.signal(number, self._notice)

    def restore(self) -> None:
        """Puts back what was there, unless somebody else has taken the place meanwhile."""
        for number, former in self._former.items():
            taken = number == signal.SIGTERM and service_runs()
            if not taken and signal.getsignal(number) == self._notice:
                signal.signal(number, former)

    def ends_program(self, number: int) -> bool:
        """Whether the signal would have ended the program, had nobody listened to it."""
        return bool(self._former.get(number, signal.SIG_DFL) == signal.SIG_DFL)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        # No lock and no log: what was interrupted may hold the one or be in the other.
        self._state.notice(number, signal.Signals(number).name)
        former: Callable[[int, FrameType | None], Any] | Any = self._former.get(number)
        if callable(former):
            former(number, frame)


def _checked(signals: Sequence[int]) -> list[int]:
    accepted = "signals is a sequence of signals such as (signal.SIGTERM,)"
    try:
        found = [signal.Signals(number) for number in signals]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{accepted}, got {signals!r}") from error
    refused = {signal.SIGKILL, signal.SIGSTOP}.intersection(found)
    if not found or refused:
        raise ValueError(f"{accepted} that a program can listen to, got {signals!r}")
    return [int(number) for number in found]
