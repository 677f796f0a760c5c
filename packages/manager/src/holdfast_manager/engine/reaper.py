"""Deleting the data of un-committed steps: in the background, a few at a time."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading

from holdfast_storage.commit import Removal
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
AT_ONCE = 2


class Reaper:
    """A queue of deletions that nothing waits for, saves least of all.

    What is queued is un-committed already. Whatever is not deleted when the process ends,
    the next one that saves to the run finds and deletes.

    Args:
        at_once: Deletions under way at the same time.
    """

    def __init__(self, *, at_once: int = AT_ONCE) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._lock = threading.Lock()
        self._pending: set[concurrent.futures.Future[None]] = set()

    def add(self, removal: Removal, what: str) -> None:
        """Queues a deletion. From any thread; returns at once."""
        future = get_loop().submit(self._delete(removal, what))
        with self._lock:
            self._pending.add(future)
        future.add_done_callback(self._forget)

    def close(self, patience_s: float) -> None:
        """Waits for what is queued; after `patience_s` seconds leaves the rest to others."""
        with self._lock:
            pending = set(self._pending)
        left = concurrent.futures.wait(pending, patience_s).not_done
        for future in left:
            future.cancel()
        if left:
            _log.info("%d deletions are left to the next process that saves here", len(left))

    def _forget(self, future: concurrent.futures.Future[None]) -> None:
        with self._lock:
            self._pending.discard(future)

    async def _delete(self, removal: Removal, what: str) -> None:
        async with self._slots:
            try:
                await removal()
            except Exception:  # noqa: BLE001 - it is un-committed: the next sweep finds it
                if threading.main_thread().is_alive():
                    _log.warning("could not delete %s", what, exc_info=True)
                else:  # the program is ending, and thread pools refuse work by then
                    _log.debug("%s is left to the next process that saves here", what)
