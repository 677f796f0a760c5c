"""Whether a holder lives: by proof on its own host, elsewhere by watching for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from holdfast_metadata import Lease
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity
from holdfast_storage.lease.epochs import list_epochs, read_epoch
from holdfast_storage.lease.process import ProcessLeases, process_leases
from holdfast_storage.values import ObjectInfo

SILENCE_S = 30.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long silence must last, and the clock it is measured by.

    Attributes:
        silence_s: A holder that did not refresh its lease for so long is dead, in seconds.
        pause_s: Between two looks.
        clock: Never jumps; the store's and other hosts' clocks are not asked.
        sleep: Waits.
    """

    silence_s: float = SILENCE_S
    pause_s: float = 1.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass(frozen=True)
class Holder:
    """Who holds a run, as far as can be told.

    Attributes:
        epoch: The highest.
        lease: What it says.
        alive: Whether it lives; False if it ended, is gone, or was silent long enough.
        epochs: All that were there at the last look.
    """

    epoch: int
    lease: Lease
    alive: bool
    epochs: Mapping[int, ObjectInfo]


async def find_holder(
    backend: StorageBackend,
    run: str = "",
    *,
    patience: Patience | None = None,
    leases: ProcessLeases = process_leases,
) -> Holder | None:
    """The holder of a run, watched if need be; None if it never had one. Writes nothing.

    Raises:
        MetadataError: Its lease cannot be read.
    """
    patience = patience or Patience()
    since = patience.clock()
    first: tuple[int, str] | None = None
    lease: Lease | None = None
    while True:
        there = await list_epochs(backend, run)
        if not there:
            return None
        epoch = max(there)
        seen = (epoch, there[epoch].version.token)
        if seen != first:
            lease = await read_epoch(backend, epoch, run)
            if lease is None:
                continue  # cleared away: there is a higher one
            ended = _has_ended(lease, leases)
            if ended or first is not None or _is_known_to_live(lease, leases):
                return Holder(epoch, lease, not ended, there)
            first = seen
            _tell(backend, run, lease, patience)
        elif lease is not None and patience.clock() - since >= patience.silence_s:
            return Holder(epoch, lease, alive=False, epochs=there)
        await patience.sleep(patience.pause_s)


def _tell(backend: StorageBackend, run: str, lease: Lease, patience: Patience) -> None:
    _log.warning(
        "process %s on %s wrote to %s and has not said that it ended: watching for up to %.0f s "
        "whether it lives",
        lease.by.pid,
        lease.by.host,
        keys.join(backend.root, run) if run else backend.root,
        patience.silence_s,
    )


def _has_ended(lease: Lease, leases: ProcessLeases) -> bool:
    if lease.released or identity.is_gone(lease.by):
        return True
    mine = identity.is_this_process(lease.by)  # then only one that was lost track of
    return mine and leases.find(lease.by.attempt) is None


def _is_known_to_live(lease: Lease, leases: ProcessLeases) -> bool:
    return leases.find(lease.by.attempt) is not None or identity.is_here(lease.by)


def held_error(backend: StorageBackend, holder: Holder, what: str) -> errors.LeaseHeldError:
    """Says who holds the run, and what can be done."""
    by, seen = holder.lease.by, holder.epochs[holder.epoch]
    return errors.LeaseHeldError(
        f"another process writes to this run: process {by.pid} on {by.host}, since "
        f"{_said(by.created_ns / 1e9)}; its last sign of life is of {_said(seen.modified)} "
        f"by the store's clock. Nothing was written. {what}",
        host=by.host,
        pid=by.pid,
        key=seen.key,
        root=backend.root,
    )


def _said(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
