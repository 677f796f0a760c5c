"""Loading once: one replica reads, and the others get its bytes from device to device.

The one place where holdfast uses collectives of the devices, and only if it is asked to: what
moves is the contents of arrays. That all have read, and what they do next, is agreed on the
host, before any device is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from holdfast_checkpointer.arrays.options import LoadAndBroadcastOptions
from holdfast_checkpointer.arrays.read import ArrayRequest, ArraySource, Parts
from holdfast_checkpointer.arrays.replicas import Replicas, key_of, replicas_of
from holdfast_checkpointer.arrays.rows import WORD, Grid, Moved, Rows
from holdfast_checkpointer.multihost.errors import DisagreementError
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.multihost.operation import Operation
from holdfast_checkpointer.options import Context
from holdfast_metadata import digest_bytes
from holdfast_storage.per_loop import PerLoop

_log = logging.getLogger(__name__)
_WINDOW = 256 << 20
_turns: PerLoop[asyncio.Lock] = PerLoop()


async def _new_turn() -> asyncio.Lock:
    return asyncio.Lock()


@contextlib.asynccontextmanager
async def together(place: str, context: Context) -> AsyncIterator[Broadcast | None]:
    """What is done to load one item, if all processes of the job do it together.

    Args:
        place: What is loaded, the same on every process.
        context: Options; they say whether one replica reads for all.

    Yields:
        By which arrays are read; None if each process loads for itself.

    Raises:
        RemoteProcessError: Another process failed in its block.
    """
    options = context.array_loading
    job = Membership.of(context.multiprocessing)
    if job.alone or not options.use_load_and_broadcast:
        yield None
        return
    coordinator = job.coordinator(context.multiprocessing.deadline_secs)
    async with coordinator.operation(f"load {place}", what=f"the load of {place}") as operation:
        operation.enter("the look at the checkpoint")
        yield Broadcast(job.processes, operation, options.load_and_broadcast_options)
        await operation.barrier("the end of the load")
        await operation.conclude(b"loaded" if operation.is_primary else None)


@dataclass(frozen=True)
class Broadcast:
    """How the processes of a job read the arrays of an item together.

    Args:
        processes: They.
        operation: In which they meet.
        options: Which replica reads.
    """

    processes: Sequence[int]
    operation: Operation
    options: LoadAndBroadcastOptions

    async def read(
        self, reader: ArraySource, requests: Sequence[ArrayRequest], shardings: Sequence[Any]
    ) -> list[Parts]:
        """As `ArraySource.read`; called once, by all processes, with the same requests.

        Args:
            reader: Where the arrays come from.
            requests: What this process needs.
            shardings: Where each array goes; None for one that stays on the host.

        Raises:
            DisagreementError: The processes do not load the same; on all of them.
            RemoteProcessError: One of them could not read.
            ValueError: There is no such replica.
        """
        operation = self.operation
        lie = [self._lie(*each) for each in zip(requests, shardings, strict=True)]
        await operation.vote("the comparison of targets", _plan_of(requests, lie), _require_same)
        self._warn_of_none(lie, sum(sharding is not None for sharding in shardings))
        operation.enter("the read")
        found = await operation.until_failure(self._read_mine(reader, requests, lie))
        await operation.barrier("the end of reading")
        operation.enter("the broadcast")
        for number, (grid, members) in enumerate(_by_grid(lie).items()):
            arrays = [Moved(requests[i], replicas, found[i]) for i, replicas in members]
            moved = await self._spread(grid, number, arrays)
            for (i, _), parts in zip(members, moved, strict=True):
                found[i] = parts
        return found

    def _lie(self, request: ArrayRequest, sharding: Any) -> Replicas | None:
        if request.shape is None or request.dtype is None or sharding is None:
            return None
        return replicas_of(
            sharding,
            request.shape,
            self.options.replica_axis_index,
            self.options.primary_replica_id,
            self.processes,
        )

    def _warn_of_none(self, lie: Sequence[Replicas | None], arrays: int) -> None:
        if arrays and not any(lie):
            _log.warning(
                "use_load_and_broadcast changes nothing here: of %d arrays none lies in replicas "
                "along axis %d of a mesh of all processes, with processes that have no device of "
                "replica %d; each process reads what it needs",
                arrays,
                self.options.replica_axis_index,
                self.options.primary_replica_id,
            )

    async def _read_mine(
        self, reader: ArraySource, requests: Sequence[ArrayRequest], lie: Sequence[Replicas | None]
    ) -> list[Parts]:
        """What this process reads: of replicated arrays what its devices of the replica have."""
        results: list[Parts] = [[] for _ in requests]
        wanted = []
        for i, (request, replicas) in enumerate(zip(requests, lie, strict=True)):
            if replicas is not None:
                mine = replicas.here(self.options.primary_replica_id)
                if not mine:
                    continue
                request = _restricted(request, mine)
            wanted.append((i, request))
        read = await reader.read([request for _, request in wanted])
        for (i, _), parts in zip(wanted, read, strict=True):
            results[i] = parts
        return results

    async def _spread(
        self,
        grid: Grid,
        number: int,
        arrays: Sequence[Moved],
    ) -> list[Parts]:
        """Moves arrays that lie on the same devices, a window of bytes after the other."""
        rows = Rows(grid, arrays, self.options.primary_replica_id)
        own = str(self._window()).encode()
        # All begin when the primary says so, and it lets the next ones begin when all are done:
        # the collectives of several items that are loaded at once must come in the same order
        # everywhere, and two devices may be through while others have not begun.
        turn = await _turns.get(_new_turn)
        async with turn if self.operation.is_primary else contextlib.nullcontext():
            window = int(await self.operation.vote(f"window {number}", own, _least))
            for begin in range(0, rows.size, window):
                await asyncio.to_thread(rows.move, begin, min(begin + window, rows.size))
                self.operation.advance()
            await self.operation.barrier(f"the end of window {number}")
        return [rows.parts(i) for i in range(len(arrays))]

    def _window(self) -> int:
        """How many bytes of each device are moved at once: twice that is held there."""
        limit = self.options.broadcast_memory_limit_bytes
        if limit is None:
            free = [_free(device) for device in jax.local_devices()]
            scale = self.options.broadcast_memory_scaling_factor
            limit = 2 * _WINDOW
            if None not in free and scale is not None:
                limit = int(min(size for size in free if size is not None) * scale)
        words = min(limit // 2, _WINDOW) // WORD.itemsize
        return max(1, words) * WORD.itemsize


def _by_grid(lie: Sequence[Replicas | None]) -> dict[Grid, list[tuple[int, Replicas]]]:
    """The arrays that lie on the same devices, by their numbers."""
    found: dict[Grid, list[tuple[int, Replicas]]] = {}
    for i, replicas in enumerate(lie):
        if replicas is not None:
            found.setdefault(Grid.of(replicas), []).append((i, replicas))
    return found


def _restricted(request: ArrayRequest, regions: Sequence[Any]) -> ArrayRequest:
    whole = [tuple(slice(0, size) for size in request.shape or ())]
    return ArrayRequest(**{**vars(request), "regions": None if list(regions) == whole else regions})


def _plan_of(requests: Sequence[ArrayRequest], lie: Sequence[Replicas | None]) -> bytes:
    """What all must have alike, in few bytes."""
    said = [
        [request.name, request.dtype, replicas.extent, _ids(replicas)]
        for request, replicas in zip(requests, lie, strict=True)
        if replicas is not None
    ]
    return f"{len(said)} {digest_bytes(json.dumps(said).encode())}".encode()


def _ids(replicas: Replicas) -> list[Any]:
    return [
        [[device.id, key_of(replicas.regions[device])] for device in row] for row in replicas.grid
    ]


def _require_same(ballots: Mapping[int, bytes]) -> bytes:
    if len(set(ballots.values())) > 1:
        told = "; ".join(
            f"process {process}: {said.decode().split()[0]} arrays to broadcast"
            for process, said in sorted(ballots.items())[:8]
        )
        raise DisagreementError(
            "the processes do not load the same arrays onto the same devices, which "
            f"use_load_and_broadcast needs ({told}); nothing was loaded"
        )
    return b""


def _least(ballots: Mapping[int, bytes]) -> bytes:
    return min(ballots.values(), key=int)


def _free(device: jax.Device) -> int | None:
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
