"""A lease while it is held: refreshed by a thread of its own, and released in the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Iterator

from holdfast_metadata import Lease
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.lease.epochs import lease_key, list_epochs, read_epoch, refresh_epoch
from holdfast_storage.lease.process import ProcessLeases
from holdfast_storage.values import ObjectVersion

_log = logging.getLogger(__name__)
BEAT_S = 10.0  # three may be late before anybody may take over
RELEASE_PATIENCE_S = 10.0


class HeldLease:
    """One epoch that this process has made. Thread-safe.

    Args:
        backend: The run.
        lease: What the epoch says.
        leases: Those of the process.
        beat_s: Between two refreshes, in seconds.

    Attributes:
        version: What was written last; None if that is not known.
    """

    def __init__(
        self,
        backend: StorageBackend,
        lease: Lease,
        leases: ProcessLeases,
        *,
        beat_s: float = BEAT_S,
    ) -> None:
        self._backend = backend
        self._root = backend.root
        self._lease = lease
        self._leases = leases
        self._beat_s = beat_s
        self.version: ObjectVersion | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()  # a finalizer may come in between
        self._users = 0
        self._busy = 0
        self._ending = False
        self._lost = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        # What makes the epoch is done: whoever shares it waits for that.
        self.ready: concurrent.futures.Future[None] = concurrent.futures.Future()

    @property
    def epoch(self) -> int:
        """Its number."""
        return self._lease.epoch

    @property
    def pid(self) -> int:
        """Of the process that made it; a forked child is another one."""
        return self._pid

    @property
    def ident(self) -> str:
        """Its unique id."""
        return self._lease.by.attempt

    @property
    def kept(self) -> bool:
        """Whether it is refreshed still, in this process."""
        thread = self._thread
        dead = thread is not None and not thread.is_alive()
        return not (self._ending or self._lost or dead or os.getpid() != self._pid)

    def start(self) -> None:
        """Begins to refresh it."""
        thread = threading.Thread(
            target=self._serve, name=f"holdfast-lease-{self.epoch}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # the interpreter is ending and waits for a save
            _log.debug("no thread can be started any more to refresh the lease")
            return
        self._thread = thread

    def share(self) -> bool:
        """Counts one more user; False if it is too late."""
        with self._lock:
            if not self.kept:
                return False
            self._users += 1
            return True

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """While something may still be decided, a release is not stored: it says the contrary."""
        with self._lock:
            self._busy += 1
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1

    def leave(self) -> None:
        """Counts one user less; the last one releases the lease."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.release()

    def release(self) -> None:
        """Lets the next writer proceed at once. Returns before that is stored; see `join`."""
        self._ending = True
        self._stop.set()

    def give_up(self) -> None:
        """Ends before it was used."""
        self.ready.cancel()
        self.release()
        if self._thread is None:
            self._leases.forget(self)

    def join(self, patience_s: float = RELEASE_PATIENCE_S) -> None:
        """Waits until the release is stored; there is nothing to wait for before that."""
        if not self._ending or self._pid != os.getpid():
            return  # others share it, or this is a forked child's copy
        if self._thread is not None:
            self._thread.join(patience_s)
        else:
            self._end()

    async def require(self, backend: StorageBackend | None = None) -> None:
        """Asks the store whether this is the highest epoch still.

        Args:
            backend: Through which to ask; by default the one that made the epoch.

        Raises:
            LeaseLostError: It is not; the message names who has the run now.
        """
        asked = backend or self._backend
        if not self._lost and self._pid == os.getpid():
            if await self._is_highest(asked):
                return
            self._lost = True
        raise await self._lost_error(asked)

    async def _is_highest(self, backend: StorageBackend) -> bool:
        """Whether the highest epoch is this one; it is read only if another version is there.

        Where the folder of a run was removed and made anew, its first epoch is another's.
        """
        there = await list_epochs(backend)
        if max(there, default=0) != self.epoch:
            return False
        if there[self.epoch].version == self.version:
            return True
        found = await read_epoch(backend, self.epoch)
        return found is not None and found.by.attempt == self.ident

    def refuse_if_lost(self, backend: StorageBackend) -> None:
        """Refuses early what could never be decided; asks nobody.

        Raises:
            LeaseLostError: It is known to be lost.
        """
        if self._lost or self._pid != os.getpid():
            raise errors.LeaseLostError(_LOST, key=lease_key("", self.epoch), root=backend.root)

    async def _lost_error(self, backend: StorageBackend) -> errors.LeaseLostError:
        said, who = _LOST, ""
        try:
            epoch = max(await list_epochs(backend), default=0)
            said = _LOST if epoch else _GONE
            lease = await read_epoch(backend, epoch) if epoch else None
            if lease is not None and lease.released:
                who = f" It was held by process {lease.by.pid} on {lease.by.host}, which has ended."
            elif lease is not None:
                who = f" It is held by process {lease.by.pid} on {lease.by.host} (epoch {epoch})."
        except Exception:  # noqa: BLE001 - only for the message
            _log.debug("cannot tell who holds %s", backend.root, exc_info=True)
        return errors.LeaseLostError(said + who, key=lease_key("", self.epoch), root=backend.root)

    def _serve(self) -> None:
        with asyncio.Runner() as runner:
            while not self._stop.wait(self._beat_s):
                try:
                    runner.run(self.beat())
                except BaseException as error:  # noqa: BLE001 - every decision asks anyway
                    _log.warning("could not refresh the lease in %s: %r", self._root, error)
                if self._lost:
                    _log.warning("%s was taken over by another process", self._root)
                    break
            self._end(runner)

    def _end(self, runner: asyncio.Runner | None = None) -> None:
        """Says that it is released, if it was not lost."""
        with contextlib.ExitStack() as stack:
            runner = runner or stack.enter_context(asyncio.Runner())
            try:
                if not self._lost and not self._busy:
                    runner.run(self._put(released=True))
                runner.run(self._backend.release())  # the connections of this thread's loop
            except BaseException:  # noqa: BLE001 - the next writer waits a while instead
                _log.debug("could not release the lease in %s", self._root, exc_info=True)
        self._leases.forget(self)

    async def beat(self) -> None:
        """Refreshes it once, unless it is found to be lost."""
        await self._put(released=False)

    async def _put(self, *, released: bool) -> None:
        if not await self._is_highest(self._backend):
            self._lost = True
            return
        by = dataclasses.replace(self._lease.by, beat=self._lease.by.beat + 1)
        self._lease = dataclasses.replace(self._lease, by=by, released=released)
        self.version = await refresh_epoch(self._backend, self._lease)


_LOST = (
    "another process has taken this run over: this one can neither commit nor remove steps any "
    "more, and what it was saving is not visible. Go on there, or open the run anew with "
    "takeover=True."
)
_GONE = (
    "the lease of this run is not there any more: somebody has removed its folder, or put another "
    "in its place. What was being saved is not visible; open the run anew to save."
)
