"""JAX's preemption service: the step at which a job that is to be stopped saves."""

from __future__ import annotations

import logging
import threading

from jax.experimental import multihost_utils

_log = logging.getLogger(__name__)


class Preemption:
    """Asks the service once for each step, however often the step is decided about.

    The service agrees on one step among all processes, and expects to be asked at every
    step. Where it does not run the answer is no.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: tuple[int, bool] | None = None

    def reached(self, step: int) -> bool:
        """Whether this is the step at which all processes save."""
        with self._lock:
            if self._last is None or self._last[0] != step:
                self._last = (step, _ask(step))
            return self._last[1]


def _ask(step: int) -> bool:
    try:
        return bool(multihost_utils.reached_preemption_sync_point(step))
    except RuntimeError as error:
        _log.debug("no preemption service: %s", error)
        return False
