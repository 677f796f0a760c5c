"""Deleting the data of un-committed steps: in the background, a few at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from collections.abc import Awaitable, Callable

from holdfast_manager.engine.deletion import Deletion
from holdfast_storage.commit import Pace
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)


class Background:
    """Work that nothing waits for, saves least of all; what fails is reported in the log.

    Attributes:
        failed: What could not be done, and why, since the start.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: set[concurrent.futures.Future[None]] = set()
        self.failed: list[str] = []

    def add(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        """Begins some work. From any thread; returns at once."""
        future = get_loop().submit(self._carefully(work, what))
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)

    def close(self, patience_s: float) -> None:
        """Waits for what is under way; after `patience_s` seconds leaves the rest to others."""
        deadline = time.monotonic() + patience_s
        left = self._under_way()
        while left and (patience := deadline - time.monotonic()) > 0:
            concurrent.futures.wait(left, patience)
            left = self._under_way()  # some work adds more
        for future in left:
            future.cancel()
        if left:
            _log.info("%d deletions are left to the next process that saves here", len(left))

    def _under_way(self) -> set[concurrent.futures.Future[None]]:
        with self._lock:
            return {future for future in self._pending if not future.done()}

    def report(self, what: str, error: Exception) -> None:
        """Tells that something could not be deleted."""
        self.failed.append(f"{what}: {error}")
        _log.warning("could not delete %s", what, exc_info=error)

    def _forget(self, future: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._pending.discard(future)

    async def _carefully(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - nothing depends on it: a sweep finds the rest
            if not threading.main_thread().is_alive():
                # The program is ending, and thread pools refuse work by then.
                _log.debug("%s is left to the next process that saves here", what)
                return
            self.report(what, error)


class Reaper(Background):
    """A queue of deletions, a few of which run at a time.

    What is queued is un-committed already. One that fails stops no other. Whatever is not
    deleted when the process ends, the next one that saves to the run finds and deletes.

    Args:
        options: How many at a time, and how fast.

    Attributes:
        pace: How fast objects are deleted; whoever deletes in the background keeps to it.
        patience_s: How long `close` waits, in seconds.
    """

    def __init__(self, options: Deletion | None = None) -> None:
        super().__init__()
        chosen = options or Deletion()
        self._slots = asyncio.Semaphore(chosen.at_once)
        self.pace = Pace(chosen.objects_per_second)
        self.patience_s = chosen.patience.total_seconds()

    async def _carefully(self, work: Callable[[], Awaitable[None]], what: str) -> None:
        async with self._slots:
            await super()._carefully(work, what)
