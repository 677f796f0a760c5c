"""One step that this process reads, held until it says that it has done."""

from __future__ import annotations

import asyncio
import atexit
import dataclasses
import logging
import threading
import time
import uuid

from holdfast_manager.engine.removals import Removals
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import READERS_DIR, ReaderLease
from holdfast_storage import (
    ObjectNotFoundError,
    StorageError,
    StoragePermissionError,
    UnsupportedOperationError,
    keys,
)
from holdfast_storage.commit import identity
from holdfast_storage.commit.shield import carry_through

_log = logging.getLogger(__name__)
_CLOSING_PATIENCE_S = 10.0
_open: set[Reading] = set()


class Reading:
    """A reader's lease: `_readers/<id>`, refreshed by a thread with a loop of its own.

    It is put before the step is looked at. A process that did not run for longer than the
    time limit may have lost the step meanwhile: its next beat puts the lease anew, looks
    again, and says in the log if the step is gone.

    Args:
        run: The run.
        removals: What is about to be removed.
        entry: The step.
        ttl_s: How long the lease holds after each beat, in seconds.
        interval_s: Between two beats.

    Attributes:
        entry: The step.
        protected: Whether the step is held; False where this process may not write.
        lost: Whether the step was removed while this process did not run.
    """

    def __init__(
        self,
        run: RunDirectory,
        removals: Removals,
        entry: CheckpointMetadata,
        *,
        ttl_s: float,
        interval_s: float,
    ) -> None:
        self.entry = entry
        self.protected = True
        self.lost = False
        self._run = run
        self._backend = run.backend
        self._removals = removals
        self._ttl_s = ttl_s
        self._interval_s = interval_s
        by = identity.new_mark(uuid.uuid4().hex, "reader", ttl_s=ttl_s)
        self._lease = ReaderLease((entry.step,), by)
        self._key = keys.join(READERS_DIR, by.attempt)
        self._held_since = 0.0
        self._unsure = False
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._serve, name=f"holdfast-reader-{by.attempt[:8]}", daemon=True
        )

    async def begin(self, *, required: bool) -> None:
        """Puts the lease, then looks whether the step is still there; see `Readers.take`."""
        try:
            self._held_since = time.monotonic()
            try:
                await self._put(parents=True)
            except (StoragePermissionError, UnsupportedOperationError):
                if required:
                    raise
                self.protected = False
            await self._removals.settle(self.entry)
            if self.protected:
                _open.add(self)
                self._thread.start()
        except BaseException:
            _open.discard(self)
            if self.protected:
                await carry_through(self._let_go())
            raise

    def close(self) -> None:
        """Lets the step go. Waits a while for a request that is under way."""
        self.stop()
        if self in _open:  # if not, it was closed, perhaps before the interpreter fell apart
            _open.discard(self)
            self._thread.join(_CLOSING_PATIENCE_S)

    def stop(self) -> None:
        """Lets the step go in the background."""
        self._stop.set()

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while not self.lost and not self._stop.wait(self._interval_s):
                try:
                    runner.run(self.beat())
                except Exception:  # noqa: BLE001 - the next beat tries again
                    _log.warning("could not refresh %s", self._key, exc_info=True)
            runner.run(self._let_go())
            runner.run(self._backend.release())  # the connections of this thread's loop

    async def beat(self) -> None:
        """Refreshes the lease; looks at the step again if it may have been lost."""
        asked = time.monotonic()
        there = await self._is_there()
        if not there and not await self._run.is_there(self.entry):
            self._say_lost()  # perhaps with the whole run, which no lease brings back
            return
        beat = self._lease.by.beat + 1
        self._lease = dataclasses.replace(
            self._lease, by=dataclasses.replace(self._lease.by, beat=beat)
        )
        await self._put(parents=not there)
        if self._unsure or not there or time.monotonic() - self._held_since > self._ttl_s:
            self._unsure = True
            try:
                await self._removals.settle(self.entry)
            except StepNotFoundError:
                self._say_lost()
                return
        self._unsure = False
        self._held_since = asked

    def _say_lost(self) -> None:
        self.lost = True
        _log.warning(
            "%s was removed while this process read it, which had not said for %.0f s that it "
            "does; what still reads it fails with CheckpointDeletedError",
            self.entry.path,
            time.monotonic() - self._held_since,
        )

    async def _is_there(self) -> bool:
        try:
            await self._backend.stat(self._key)
        except ObjectNotFoundError:
            return False
        return True

    async def _put(self, *, parents: bool) -> None:
        # It need not survive a power cut, which no reader does.
        await self._backend.put(self._key, self._lease.to_bytes(), durable=False, parents=parents)

    async def _let_go(self) -> None:
        try:
            await self._backend.delete(self._key)
        except StorageError:
            _log.debug("%s is left to whoever finds it dead", self._key, exc_info=True)


def close_all() -> None:
    """Lets everything go, at the exit: iterators that nobody left are closed too late."""
    for reading in list(_open):
        reading.stop()
    for reading in list(_open):
        reading.close()


atexit.register(close_all)
