"""The step at which a job that is to be stopped saves: JAX's preemption service, or a signal."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import multihost_utils

from holdfast_manager.engine import termination

_log = logging.getLogger(__name__)
_NO_SERVICE = "sync manager has not been initialized"  # JAX has no error of its own for it


@dataclass(frozen=True)
class Notice:
    """What is known at a step of the end of the job.

    Attributes:
        reached: Whether this is the step at which all processes save.
        signal: The signal that a process has seen and saves heed; 0 if none.
    """

    reached: bool
    signal: int

    @classmethod
    def among(cls, said: Mapping[int, Any]) -> Notice:
        """What all processes know together of what each has said as `as_json`."""
        notices = [cls(*one) for one in said.values()]
        return cls(
            any(one.reached for one in notices),
            next((one.signal for one in notices if one.signal), 0),
        )

    def as_json(self) -> list[int]:
        """The arguments that make it."""
        return [self.reached, self.signal]


class Preemption:
    """Asks once for each step, however often the step is decided about.

    The service agrees on one step among all processes, and expects to be asked at every
    step. Where it does not run, a signal that `save_on_termination` has seen is the answer: a
    step keeps its answer, so that a loop which saves and then asks has saved the step at which
    it ends.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[int, bool] | None = None
        self._settled: int | None = None

    def reached(self, step: int) -> bool:
        """Whether this is the step at which all processes save."""
        with self._lock:
            if self._last is None or self._last[0] != step:
                self._last = (step, _ask(step))
            return self._last[1]

    def own(self, step: int) -> Notice:
        """What this process knows."""
        return Notice(self.reached(step), termination.signal_seen())

    def settle(self, step: int, notice: Notice) -> None:
        """Takes in what all processes know together; a step keeps that answer."""
        with self._lock:
            self._last, self._settled = (step, notice.reached), step
        if notice.signal:
            termination.notice_of_job(notice.signal)

    def is_settled(self, step: int) -> bool:
        """Whether the processes have agreed about this step."""
        with self._lock:
            return self._settled == step


def service_runs() -> bool:
    """Whether JAX's preemption service runs in this process, and has SIGTERM for itself."""
    state: Any = getattr(getattr(multihost_utils, "distributed", None), "global_state", None)
    if not hasattr(state, "preemption_sync_manager"):  # a JAX that keeps it elsewhere
        return jax.distributed.is_initialized()
    return bool(state.preemption_sync_manager is not None)


def _ask(step: int) -> bool:
    try:
        reached = bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError as error:
        reached = False
        if _NO_SERVICE not in str(error):
            _log.warning("JAX's preemption service did not answer at step %d: %s", step, error)
    if reached:
        termination.notice_of_jax()
    return reached or termination.requested()
