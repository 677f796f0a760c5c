"""Whether somebody else writes to a run: asked by those who need no lease themselves."""

from __future__ import annotations

from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import guard
from holdfast_storage.lease.process import ProcessLeases, process_leases
from holdfast_storage.lease.watching import Holder, Patience, find_holder, held_error


async def other_writer(
    backend: StorageBackend,
    run: str = "",
    *,
    patience: Patience | None = None,
    leases: ProcessLeases = process_leases,
) -> Holder | None:
    """The living writer of a run in another process, or None. Writes nothing.

    One listing where there never was a writer; where it cannot be told whether the last one
    lives, it is watched for a while.
    """
    holder = await find_holder(backend, run, patience=patience, leases=leases)
    if holder is None or not holder.alive:
        return None
    return None if leases.find(holder.lease.by.attempt) is not None else holder


async def refuse_if_written(
    backend: StorageBackend, final: str, *, force: bool, patience: Patience | None = None
) -> None:
    """Refuses to replace or delete a checkpoint in a run to which another process writes.

    Nothing is asked where the caller has the lease (see `commit.guard`).

    Raises:
        LeaseHeldError: Another process does, and `force` is false.
    """
    if force or guard.current() is not None:
        return
    holder = await other_writer(backend, keys.parent(final), patience=patience)
    if holder is not None:
        raise held_error(
            backend, holder, "Wait for it to end, or pass force=True: it is told nothing of it."
        )
