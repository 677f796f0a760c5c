"""Items that a user's handler has one of holdfast's save inside its own, in a job of several.

Each process calls the user's handler with a folder of its own, in which nobody could merge what
all have written. So what holdfast's handlers save there goes straight into the attempt, and the
primary merges it when the user's item is finished. Nothing is exchanged in between: two items
of users' may be saved in any order.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.together import refuse_differences
from holdfast_checkpointer.handlers.base import ItemRecord, StagedItem
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_storage import DestinationOccupiedError, WriteArea


@dataclass(frozen=True)
class _Inner:
    """One item inside.

    Attributes:
        staged: It, on this process; None on a process that was only told of it.
        said: What must be the same on every process, by leaf.
        record: What a process wrote of it; None for nothing.
    """

    staged: StagedItem | None
    said: Mapping[str, str]
    record: ItemRecord | None


class InnerItems:
    """What handlers of holdfast's save below one folder of a user's handler.

    Args:
        path: The folder of this process.
        area: Where its contents will lie in the attempt.
        job: The processes that save.
    """

    def __init__(self, path: str, area: WriteArea, job: Membership) -> None:
        self._path = os.path.realpath(path)
        self._area = area
        self._job = job
        self._items: dict[str, _Inner] = {}

    def __enter__(self) -> Self:
        with _lock:
            _open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        with _lock:
            _open.remove(self)

    @classmethod
    def around(cls, directory: Any) -> tuple[InnerItems, str] | None:
        """The user's folder that a directory lies in, and the way from there, if it does.

        Args:
            directory: A path or URL, or one that awaits its creation.
        """
        text = str(os.fspath(getattr(directory, "path", directory)))
        if "://" in text:
            return None
        path = os.path.realpath(text)
        with _lock:
            for found in _open:
                if path == found._path or path.startswith(found._path + os.sep):
                    way = os.path.relpath(path, found._path).replace(os.sep, "/")
                    return found, "" if way == "." else way
        return None

    @property
    def leads(self) -> bool:
        """Whether this process finishes what all write."""
        return self._job.is_primary

    def holds(self, way: str) -> bool:
        """Whether an item was saved there or below."""
        return any(not way or f"{one}/".startswith(f"{way}/") for one in self._items)

    @property
    def folders(self) -> set[str]:
        """Where items lie, by the way from the folder."""
        return set(self._items)

    async def write(self, way: str, staged: StagedItem) -> None:
        """Writes this process's part of an item into the attempt.

        Raises:
            DestinationOccupiedError: An item was saved there before.
        """
        if way in self._items:
            raise DestinationOccupiedError(
                "a handler has saved here before; choose another folder",
                key=way,
                root=self._area.label,
            )
        said = await asyncio.to_thread(staged.fingerprint)
        mine = staged if self.leads else staged.for_follower()
        self._items[way] = _Inner(staged, said, None)
        record = None if mine is None else await mine.write(self._scope(way))
        self._items[way] = _Inner(staged, said, record)

    def record(self) -> ItemRecord:
        """What this process wrote, for `finish`."""
        return ItemRecord(detail=dict(self._items))

    def encode(self, record: ItemRecord) -> bytes:
        """What this process wrote, for the primary."""
        items = {
            way: [dict(one.said), one.record and one.staged.encode(one.record).hex()]
            for way, one in record.detail.items()
        }
        return zlib.compress(json.dumps(items).encode())

    def decode(self, data: bytes) -> ItemRecord:
        """The inverse of `encode`, of what another process wrote."""
        told: dict[str, Any] = json.loads(zlib.decompress(data))
        found = {}
        for way, (said, encoded) in told.items():
            mine = self._items.get(way)
            known = mine is not None and mine.staged is not None and encoded is not None
            record = mine.staged.decode(bytes.fromhex(encoded)) if known else None  # type: ignore[union-attr]
            found[way] = _Inner(None, said, record)
        return ItemRecord(detail=found)

    async def finish(self, records: Sequence[ItemRecord]) -> None:
        """Merges on the primary what the processes wrote.

        Args:
            records: Of each process, in order; this one's is among them.

        Raises:
            DisagreementError: They did not save the same inside; nothing will be visible.
        """
        others = [process for process in self._job.processes if process != self._job.me]
        refuse_differences(
            {
                process: {
                    f"{way}{leaf}": what
                    for way, one in record.detail.items()
                    for leaf, what in {**one.said, "": _THERE}.items()
                }
                for process, record in zip([self._job.me, *others], records, strict=True)
            }
        )

        async def one(way: str, item: _Inner) -> None:
            assert item.staged is not None
            parts = [found.detail[way].record for found in records]
            await item.staged.finish(self._scope(way), [part for part in parts if part is not None])

        await run_all(one(way, item) for way, item in self._items.items())

    async def discard(self) -> None:
        """Removes what the items hold outside of the attempt."""
        for item in self._items.values():
            if item.staged is not None:
                await item.staged.discard()

    def _scope(self, way: str) -> WriteArea:
        return self._area.child(way) if way else self._area


_THERE = json.dumps({"kind": "an item"})
_lock = threading.Lock()
_open: list[InnerItems] = []
