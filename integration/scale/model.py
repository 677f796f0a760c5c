"""The save of a whole job, with every process simulated: the protocol is the real one.

What is left out is JAX: instead of arrays each process has one database to write, as it has
however many leaves there are. Coordinator and storage are in memory, and count.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.saving import write_step_documents
from holdfast_checkpointer.engine.together import JointSave
from holdfast_checkpointer.handlers.base import Item, ItemRecord, StagedItem
from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.memory_service import MemoryService
from holdfast_storage import WriteArea
from holdfast_storage.testing.faulty import FaultyBackend
from holdfast_storage.testing.tables import TableBackend

DEADLINE_S = 3600.0


@dataclass(frozen=True)
class Part(StagedItem):
    """What one process has of an item.

    Attributes:
        process: Which process.
    """

    process: int

    @property
    def shared(self) -> bool:
        """Each process writes a database of its own."""
        return True

    def fingerprint(self) -> Mapping[str, str]:
        """The same on every process."""
        return {"w": '{"shape": [8]}'}

    async def write(self, area: WriteArea) -> ItemRecord:
        """Two files: the database's index and its data."""
        folder = area.child(f"ocdbt.process_{self.process}")
        await folder.put("manifest.ocdbt", b"index")
        await folder.child("d").put("data", b"data")
        return ItemRecord()

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """The merged index, and four documents."""
        for name in ("manifest.ocdbt", "_TREE.json", "_METADATA", "_sharding", "digests"):
            await area.put(name, b"{}")


@dataclass(frozen=True)
class Counts:
    """What one operation of a job asked for.

    Attributes:
        processes: Of the job.
        messages: Calls to the coordinator, by kind.
        requests: Calls to storage, by kind.
        seconds: How long the simulation took.
    """

    processes: int
    messages: Mapping[str, int]
    requests: Mapping[str, int]
    seconds: float


async def save(processes: int) -> tuple[Counts, TableBackend]:
    """Saves one checkpoint from a job of so many processes."""
    store, service = TableBackend(), MemoryService()
    views = [FaultyBackend(store, reads=True) for _ in range(processes)]
    began = time.monotonic()
    await asyncio.gather(*(_save(i, processes, views[i], service) for i in range(processes)))
    seconds = time.monotonic() - began
    assert service.keys == []
    return Counts(processes, dict(service.calls), _requests(views), seconds), store


async def _save(me: int, processes: int, backend: FaultyBackend, service: MemoryService) -> None:
    coordinator = Coordinator(
        service, me=me, processes=range(processes), primary=0, deadline_s=DEADLINE_S
    )
    items = {"state": Item(Part(me), "a handler")}

    async def documents(area: WriteArea) -> None:
        await write_step_documents(area, "step", {"state": ""}, None, marker=True, started=0)

    async with coordinator.operation("save step", call=coordinator.call()) as operation:
        joint = JointSave(operation, backend, "step", items, replace=False)
        await joint.agree()
        if operation.is_primary:
            await joint.lead(documents, replace=False)
        else:
            await joint.follow()


async def load(processes: int, store: TableBackend, *, sample: int = 20) -> Counts:
    """Opens it in some processes of such a job; they ask for nothing of each other.

    Args:
        processes: Of the job.
        store: Where `save` left it.
        sample: In how many processes, the first included.

    Returns:
        The counts of those.
    """
    views = [FaultyBackend(store, reads=True) for _ in range(min(processes, sample))]

    async def one(backend: FaultyBackend) -> None:
        async def body(stored: StoredCheckpoint) -> Any:
            return await stored.item_area("state").get("_TREE.json")

        await read_checkpoint(backend, "step", body)

    began = time.monotonic()
    for me, view in enumerate(views):  # one after the other: which one it is is a global
        with as_process(me):
            await one(view)
    return Counts(len(views), {}, _requests(views), time.monotonic() - began)


@contextlib.contextmanager
def as_process(me: int) -> Iterator[None]:
    """Makes this process that one of the job."""
    state = jax_service.runtime()
    before, state.process_id = state.process_id, me
    try:
        yield
    finally:
        state.process_id = before


def _requests(views: Sequence[FaultyBackend]) -> dict[str, int]:
    found = collections.Counter(call.operation for view in views for call in view.calls)
    return dict(sorted(found.items()))
