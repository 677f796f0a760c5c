"""The lease of a run as one opened run uses it: taken at its first write, let go when it closes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from holdfast_metadata import HoldfastError
from holdfast_storage import (
    CommitUnknownError,
    LeaseLostError,
    StorageBackend,
    StorageError,
    StorageFullError,
)
from holdfast_storage.commit.guard import guarded
from holdfast_storage.lease import HeldLease, Patience, ProcessLeases, acquire, find_holder
from holdfast_storage.lease.process import process_leases

_log = logging.getLogger(__name__)


class WritingLease:
    """Says who may write. Opening and reading a run never asks for it.

    Args:
        backend: The run.
        look_again: Lists the run anew. Asked for once the lease is taken after somebody else had
            it: what this process knows of the run may be older than what that one wrote.
        takeover: Take it at the first write whoever holds it.
        patience: How long to watch a holder of which nothing is known.
        leases: Those of this process.
    """

    def __init__(
        self,
        backend: StorageBackend,
        look_again: Callable[[], Awaitable[None]],
        *,
        takeover: bool = False,
        patience: Patience | None = None,
        leases: ProcessLeases = process_leases,
    ) -> None:
        self._backend = backend
        self._look_again = look_again
        self._takeover = takeover
        self._patience = patience
        self._leases = leases
        self._held: HeldLease | None = None
        self._up_to_date = False
        self._let_go: Callable[[], object] = lambda: None
        self._lock = asyncio.Lock()

    @property
    def epoch(self) -> int:
        """Of the lease that is held; 0 before the first write."""
        return 0 if self._held is None else self._held.epoch

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[WritingLease]:
        """Takes the lease if need be; whatever is decided in this block asks for it again.

        Raises:
            LeaseHeldError: Another process writes to the run; nothing was written.
            LeaseLostError: Another process has taken it over since.
        """
        held = await self._hold()
        with held.at_work(), guarded(self):
            try:
                yield self
            except (LeaseLostError, CommitUnknownError):
                raise
            except HoldfastError as error:
                # What the new writer fenced, replaced or removed looks like another failure.
                lost = await self._loss()
                if lost is not None:
                    raise lost from error
                raise

    @asynccontextmanager
    async def removing(self) -> AsyncIterator[None]:
        """As `writing`, for the removal of what was named.

        On a store that is too full to take the lease it goes on without, if nobody else has
        it: as `holdfast.delete` does, which names the attempt that it removes.
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                await stack.enter_async_context(self.writing())
            except StorageFullError:
                if self._held is not None or await self.ended_before() is None:
                    raise
                _log.warning("%s is full: something is removed without a lease", self._backend.root)
            yield

    async def _loss(self) -> LeaseLostError | None:
        try:
            await self.require()
        except LeaseLostError as lost:
            return lost
        except StorageError:
            _log.debug("the lease of %s could not be asked for", self._backend.root, exc_info=True)
        return None

    async def require(self) -> None:
        """Asks the store whether the lease is held still; a listing.

        Raises:
            LeaseLostError: It is not.
        """
        assert self._held is not None
        await self._held.require(self._backend)

    async def ended_before(self) -> int | None:
        """The epoch before which every holder has ended; None if another process writes.

        Takes nothing and writes nothing.
        """
        holder = await find_holder(self._backend, patience=self._patience, leases=self._leases)
        if holder is None:
            return 1
        if not holder.alive:
            return holder.epoch + 1
        mine = self._leases.find(holder.lease.by.attempt) is not None
        return holder.epoch if mine else None

    async def written_elsewhere(self) -> bool:
        """Whether another process writes to the run; takes nothing and writes nothing."""
        return self._held is None and await self.ended_before() is None

    def close(self) -> None:
        """Lets the lease go, so that the next writer proceeds at once."""
        held, self._held = self._held, None
        self._let_go()
        if held is not None:
            held.join()

    async def _hold(self) -> HeldLease:
        async with self._lock:
            held = self._held
            if held is None or held.pid != os.getpid():
                held = await self._acquire()
            held.refuse_if_lost(self._backend)
            if not self._up_to_date:  # if that fails, the next write does it
                await self._look_again()
                self._up_to_date = True
            return held

    async def _acquire(self) -> HeldLease:
        held = await acquire(
            self._backend,
            takeover=self._takeover,
            patience=self._patience,
            leases=self._leases,
        )
        self._held = held
        self._up_to_date = held.epoch == 1
        # A run that is dropped without `close` must not keep others waiting.
        finalizer = weakref.finalize(self, held.leave)
        finalizer.atexit = False  # `ProcessLeases` does that, once what runs has ended
        self._let_go = finalizer
        return held
