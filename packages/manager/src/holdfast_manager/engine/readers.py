"""Readers: steps that are being read, told by a small object with a time limit."""

from __future__ import annotations

import asyncio
import datetime
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from holdfast_manager.engine.reading import Reading
from holdfast_manager.engine.removals import Clock, Removals
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import READERS_DIR, MetadataError, ReaderLease
from holdfast_storage import ObjectInfo, ObjectNotFoundError, StorageBackend
from holdfast_storage.commit import identity
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)
TTL_S = 120.0
INTERVAL_S = 20.0
UNREADABLE_TTL_S = 3600.0


class Readers:
    """The readers of one run, in whatever process.

    A reader is dead if it is provably gone, on this host, or if its object is older than the
    time limit that it says. Both times are the store's: the store is asked for its time
    first, so that a pause between the two makes a reader younger and never older.

    Args:
        run: The run.
        removals: What is about to be removed.
        ttl_s: How long a lease holds after each beat, in seconds.
        interval_s: Between two beats.
    """

    def __init__(
        self,
        run: RunDirectory,
        removals: Removals,
        *,
        ttl_s: float = TTL_S,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._run = run
        self._removals = removals
        self._ttl_s = ttl_s
        self._interval_s = interval_s
        self._warned = False

    async def take(self, entry: CheckpointMetadata, *, required: bool = False) -> Reading:
        """Holds a committed step until what is returned is closed.

        Where the process may not write the step is not held, which is said once in the log.

        Args:
            entry: The step.
            required: Refuse instead, where the process may not write.

        Raises:
            StepNotFoundError: It was removed meanwhile.
            StorageTimeoutError: It is about to be removed, by a process that does not get on.
            StoragePermissionError: It is `required` and cannot be held.
        """
        reading = Reading(
            self._run,
            self._removals,
            entry,
            ttl_s=self._ttl_s,
            interval_s=self._interval_s,
        )
        await reading.begin(required=required)
        if not reading.protected and not self._warned:
            self._warned = True
            _log.warning(
                "%s cannot be written to by this process: a step may be removed while it is read, "
                "which then fails with CheckpointDeletedError",
                self._run.label,
            )
        return reading

    @contextmanager
    def reading(self, entry: CheckpointMetadata) -> Iterator[CheckpointMetadata]:
        """Holds a step while the block runs; see `Checkpointer.reading`."""
        reading = get_loop().run(self.take(entry))
        try:
            yield entry
        finally:
            reading.close()

    async def by_step(self, clock: Clock | None) -> dict[int, list[str]]:
        """Who reads each step, in words. Dead readers are passed over.

        Args:
            clock: Tells the store's time; who is found dead by it is also forgotten. None
                writes nothing, and every reader counts that is not provably gone.

        Raises:
            MetadataError: A lease cannot be read: nothing may be removed then.
        """
        backend = self._run.backend
        listed = (await backend.children(READERS_DIR)).objects
        if not listed:
            return {}
        now = None if clock is None else await clock()
        leases = await asyncio.gather(*(_alive(backend, info, now) for info in listed))
        found: dict[int, list[str]] = {}
        for lease in filter(None, leases):
            for step in lease.steps:
                found.setdefault(step, []).append(_who(lease))
        return found


async def _alive(
    backend: StorageBackend, listed: ObjectInfo, now: float | None
) -> ReaderLease | None:
    """A lease that counts; with the time, one that does not is removed."""
    try:
        info, data = await backend.read(listed.key)
    except ObjectNotFoundError:
        return None  # ended since the listing
    age = -math.inf if now is None else now - info.modified
    try:
        lease = ReaderLease.from_bytes(data, source=info.key)
    except MetadataError:
        if age > UNREADABLE_TTL_S:
            return None
        raise
    if not identity.is_gone(lease.by) and age <= lease.by.ttl_s:
        return lease
    if now is not None:
        _log.info("%s/%s is of a dead reader and removed", backend.root, info.key)
        await backend.delete(info.key)
    return None


def _who(lease: ReaderLease) -> str:
    since = datetime.datetime.fromtimestamp(lease.by.created_ns / 1e9, datetime.UTC)
    return f"process {lease.by.pid} on {lease.by.host}, since {since:%Y-%m-%d %H:%M:%S} UTC"
