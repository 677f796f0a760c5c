"""Waiting for a step of a run."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from holdfast_manager.engine.holds import Holds
from holdfast_manager.engine.reading import Reading
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.run_directory.listing import StepListing
from holdfast_manager.step_names import NameFormat
from holdfast_storage import ObjectNotFoundError, StorageBackend, TransientStorageError
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
_PASSING = (TransientStorageError, TimeoutError, ObjectNotFoundError)
LOOK_S = 30.0


@dataclass(frozen=True)
class Waiting:
    """How long to wait, and how.

    Attributes:
        seconds_to_sleep: Between two looks.
        timeout: Seconds without a new step after which the wait expires; None is never.
        timeout_fn: Asked once when it does: false begins the wait anew, true ends it after a
            last look. None ends it.
        required: Refuse to read what cannot be held.
    """

    seconds_to_sleep: float = 1.0
    timeout: float | None = None
    timeout_fn: Callable[[], bool] | None = None
    required: bool = False


class Follower:
    """Looks for the newest good step of a run, and holds it.

    Args:
        backend: The storage, whose root is the run's folder; nothing need be there yet.
        names: How the folders of steps are called.
        waiting: How long to wait.
        clock: Seconds that never go back.
        sleep: Waits that many seconds.
    """

    def __init__(
        self,
        backend: StorageBackend,
        names: NameFormat,
        waiting: Waiting,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._run = RunDirectory(backend, names)
        self._listing = StepListing(backend, names)
        self._readers = Holds(self._run).readers
        self._waiting = waiting
        self._clock = clock
        self._sleep = sleep

    def wait(self, at_least: int) -> Reading | None:
        """The newest good step once it is `at_least`, held; None if the wait has ended.

        Raises:
            StoragePermissionError: The run may not be read, or not written to where that is
                required.
        """
        expires = self._next_expiry()
        while True:
            found = self._look(at_least, expires)
            if found is not None:
                return found
            left = expires - self._clock()
            if left <= 0:
                if self._waiting.timeout_fn is None:
                    return None
                if self._waiting.timeout_fn():
                    # What was saved between the last look and the answer is not to be missed.
                    return self._look(at_least, expires)
                expires = self._next_expiry()
                left = math.inf
            self._sleep(min(self._waiting.seconds_to_sleep, left))

    def pause(self, seconds: float) -> None:
        """Waits without looking."""
        if seconds > 0:
            self._sleep(seconds)

    def now(self) -> float:
        """Seconds that never go back."""
        return self._clock()

    def _next_expiry(self) -> float:
        timeout = self._waiting.timeout
        return math.inf if timeout is None else self._clock() + timeout

    def _look(self, at_least: int, expires: float) -> Reading | None:
        """One look; a failure that may pass is said in the log, and is no step."""
        limit = max(expires - self._clock(), LOOK_S)
        try:
            return get_loop().run(
                asyncio.wait_for(self._find(at_least), None if math.isinf(limit) else limit)
            )
        except StepNotFoundError:
            return None  # removed while it was looked at: a newer one is there, or comes
        except _PASSING as error:
            _log.warning("could not look for a new step in %s: %s", self._run.label, error)
            return None

    async def _find(self, at_least: int) -> Reading | None:
        names, _ = await self._listing.names()
        if max(names.values(), default=-1) < at_least:
            return None  # nothing was read but one listing
        steps = await self._run.list_steps()
        if not steps or steps[-1].step < at_least:
            return None
        return await self._readers.take(steps[-1], required=self._waiting.required)
