"""Taking the lease of a run."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Mapping

from holdfast_metadata import LEASE_DIR, AttemptMark, Lease, MetadataError
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity, shelter
from holdfast_storage.lease.epochs import create_epoch, lease_key, list_epochs, read_epoch
from holdfast_storage.lease.fencing import fence_older
from holdfast_storage.lease.holding import BEAT_S, HeldLease
from holdfast_storage.lease.process import ProcessLeases, process_leases
from holdfast_storage.lease.watching import (
    SILENCE_S,
    Holder,
    Patience,
    find_holder,
    held_error,
)
from holdfast_storage.values import ObjectInfo

_log = logging.getLogger(__name__)
_TRIES = 5
_TO_DO = (
    "Wait for it to end, or close its Checkpointer; or pass takeover=True, after which it can "
    "neither commit nor remove steps."
)


def _own_mark() -> AttemptMark:
    return identity.new_mark(uuid.uuid4().hex, "lease", ttl_s=SILENCE_S)


async def acquire(
    backend: StorageBackend,
    *,
    takeover: bool = False,
    patience: Patience | None = None,
    leases: ProcessLeases = process_leases,
    mark: Callable[[], AttemptMark] = _own_mark,
    beat_s: float = BEAT_S,
) -> HeldLease:
    """Takes the lease of the run at the backend's root, or shares the one this process holds.

    It proceeds at once if nobody holds it, or its holder is provably gone; it waits, for at
    most `patience.silence_s`, where that cannot be told. On return no earlier holder can
    decide anything any more. The caller calls `leave` in the end.

    Args:
        backend: The run.
        takeover: Take it whoever holds it, also this process.
        patience: How long to watch a holder of which nothing is known.
        leases: Those of this process.
        mark: Makes the mark that says who holds it.
        beat_s: Between two refreshes, in seconds.

    Raises:
        LeaseHeldError: Another process writes to the run; nothing was written.
        MetadataError: The lease cannot be read, and `takeover` is false.
        UnsupportedOperationError: The store cannot commit safely.
    """
    await backend.commit_strategy()  # asks the store whether it honours conditions
    for _ in range(_TRIES):
        holder = None
        if not takeover:
            holder = await find_holder(backend, patience=patience, leases=leases)
            if holder is not None and holder.alive:
                shared = await _share(backend, holder, leases)
                if shared is not None:
                    return shared
                continue
        older = await list_epochs(backend) if takeover else holder.epochs if holder else {}
        lease = Lease(max(older, default=0) + 1, mark())
        if not older:
            await shelter(backend, LEASE_DIR)  # a holder whose epoch is gone has lost the run
        held = HeldLease(backend, lease, leases, beat_s=beat_s)
        leases.add(held)  # before anybody can see it
        try:
            held.version = await create_epoch(backend, lease)
            if held.version is not None:
                await _begin(held, backend, older, holder)
                return held
        except BaseException:
            held.give_up()
            raise
        held.give_up()
    raise errors.LeaseHeldError(
        f"{_TRIES} times another process was faster to take this run; nothing was written",
        root=backend.root,
    )


async def _share(
    backend: StorageBackend, holder: Holder, leases: ProcessLeases
) -> HeldLease | None:
    """The lease of this process, once it is ready for use; None if it has just ended.

    Raises:
        LeaseHeldError: It is another process's.
    """
    own = leases.find(holder.lease.by.attempt)
    if own is None:
        if identity.is_this_process(holder.lease.by):
            return None  # it was let go a moment ago
        raise held_error(backend, holder, _TO_DO)
    try:
        await asyncio.shield(asyncio.wrap_future(own.ready))
    except asyncio.CancelledError:
        if not own.ready.cancelled():
            raise
    return own if own.share() else None


async def _begin(
    held: HeldLease,
    backend: StorageBackend,
    older: Mapping[int, ObjectInfo],
    holder: Holder | None,
) -> None:
    """What the first decision under a new epoch waits for."""
    held.start()
    ended = {holder.epoch} if holder is not None and holder.lease.released else set()
    if not all([await _is_released(backend, epoch) for epoch in older if epoch not in ended]):
        await fence_older(backend, held.epoch)
    await held.require()
    held.share()
    held.ready.set_result(None)
    for epoch in older:
        try:
            await backend.delete(lease_key("", epoch))
        except errors.StorageError:
            _log.debug("epoch %d of %s stays", epoch, backend.root, exc_info=True)


async def _is_released(backend: StorageBackend, epoch: int) -> bool:
    """Whether a holder said that it ended; one whose epoch is gone was fenced by another."""
    try:
        lease = await read_epoch(backend, epoch)
    except MetadataError:
        return False
    return lease is None or lease.released
