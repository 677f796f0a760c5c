"""An item that a user's handler saves, of either interface."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from holdfast_checkpointer.handlers.base import ItemRecord, StagedItem
from holdfast_checkpointer.handlers.foreign.calls import Worker
from holdfast_checkpointer.handlers.foreign.folders import ItemFolder
from holdfast_checkpointer.handlers.foreign.inner import InnerItems
from holdfast_checkpointer.handlers.per_process import note_processes
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context
from holdfast_storage import WriteArea


class UsersItem(StagedItem):
    """Written by a user's handler into a folder; in a job of several, in each process.

    Args:
        context: Options of the save; what the handler calls of holdfast finds them.
    """

    calls = 1

    def __init__(self, context: Context) -> None:
        self._context = context
        self._job = Membership.of(context.multiprocessing)
        self._worker: Worker | None = None
        self._folder: ItemFolder | None = None
        self._inner: InnerItems | None = None

    @property
    def shared(self) -> bool:
        """See `StagedItem.shared`."""
        return not self._job.alone

    async def write(self, area: WriteArea) -> ItemRecord:
        """Lets the handler save, in the caller's thread, and waits for what it has begun."""
        self._worker = worker = Worker()
        self._folder = folder = await ItemFolder.open(
            area, self._context.file, worker, private=self.shared
        )
        if not self.shared:
            await self._save(worker, folder)
            return ItemRecord()
        self._inner = inner = InnerItems(folder.path, area, self._job)
        with inner:
            await self._save(worker, folder)
            await self._complete(worker, folder)
        await folder.hand_over(worker, beside=inner.folders)
        return inner.record()

    @abc.abstractmethod
    async def _save(self, worker: Worker, folder: ItemFolder) -> None:
        """Lets the handler write."""

    @abc.abstractmethod
    async def _complete(self, worker: Worker, folder: ItemFolder) -> None:
        """Lets the handler complete what it wrote."""

    def encode(self, record: ItemRecord) -> bytes:
        """See `StagedItem.encode`."""
        assert self._inner is not None
        return self._inner.encode(record)

    def decode(self, data: bytes) -> ItemRecord:
        """See `StagedItem.decode`."""
        assert self._inner is not None
        return self._inner.decode(data)

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Makes what was written part of the attempt."""
        if self._inner is not None:
            await self._inner.finish(records)
            await note_processes(area, self._job)
            return
        assert self._worker is not None
        assert self._folder is not None
        await self._complete(self._worker, self._folder)
        await self._folder.hand_over(self._worker)

    async def discard(self) -> None:
        """See `StagedItem.discard`."""
        worker, folder, inner = self._worker, self._folder, self._inner
        self._worker = self._folder = self._inner = None
        if worker is None:
            return
        try:
            await self._stop(worker)  # what still writes must have ended before its folder goes
            if inner is not None:
                await inner.discard()
            if folder is not None:
                await folder.discard(worker)
        finally:
            worker.end()

    async def _stop(self, worker: Worker) -> None:
        """Waits until nothing writes any more."""
