"""A PyTree that is ready to be written, by one process or by several."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.arrays import formats, plan
from holdfast_checkpointer.arrays.merge import merge_databases, stored_keys
from holdfast_checkpointer.arrays.options import ArraySaveOptions
from holdfast_checkpointer.arrays.snapshot import StagedArray
from holdfast_checkpointer.arrays.write import ArrayRecord, digest_array, write_arrays
from holdfast_checkpointer.bursts import uncollected
from holdfast_checkpointer.handlers.base import ItemRecord, StagedItem
from holdfast_checkpointer.items.describe import (
    DescribedTree,
    documents,
    encode_documents,
    put_documents,
)
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import MetadataError, Node
from holdfast_storage import KvTarget, WriteArea

_DATABASE = "ocdbt.process_{}"
_SHOWN = 5
_SAME = ("kind", "shape", "dtype", "weak_type", "value", "key_impl")


@dataclass(frozen=True)
class Written:
    """What a process wrote of a tree's arrays.

    Attributes:
        arrays: A record of each, with the digests of the chunks that it wrote.
        process: Which process, in a job of several; None if there is one.
        anything: Whether it wrote a database.
    """

    arrays: Sequence[ArrayRecord]
    process: int | None = None
    anything: bool = True


@dataclass(frozen=True)
class StagedPyTree(StagedItem):
    """A tree whose values can no longer change.

    Attributes:
        described: The tree.
        arrays: What this process has of its arrays.
        options: How to write them.
        handler: The class that staged it.
        custom_metadata: Stored in Orbax's document of the item.
        me: This process, in a job of several; None if there is one.
    """

    described: DescribedTree
    arrays: Sequence[StagedArray]
    options: ArraySaveOptions
    handler: str
    custom_metadata: Any
    me: int | None = None

    @property
    def tree(self) -> Node:
        """The tree that will be written."""
        return self.described.root

    @property
    def shared(self) -> bool:
        """Every process of a job writes its chunks, into a database of its own."""
        return self.me is not None

    def fingerprint(self) -> Mapping[str, str]:
        """What each leaf is; and its values, where each process has them whole."""
        arrays = {array.name: array for array in self.arrays}
        found = {}
        for path, leaf, name in zip(
            self.described.paths, self.described.leaves, self.described.names, strict=True
        ):
            spec = leaf.spec
            said = {field: getattr(spec, field) for field in _SAME}
            array = arrays.get(name)
            if array is not None and array.part is not None:
                said["chunk"] = array.part.chunk_shape
                said["stored"] = str(array.dtype)
                if array.part.everywhere:
                    said["bytes"] = [digest_array(shard.data) for shard in array.shards]
                else:
                    said["sharding"] = spec.sharding
            found[show(path)] = json.dumps(said, sort_keys=True, default=str)
        return found

    def encode(self, record: ItemRecord) -> bytes:
        """The digests of the chunks that were written, by array."""
        part = record.detail
        digests = {array.name: dict(array.digests) for array in part.arrays if array.digests}
        said = {"process": part.process, "anything": part.anything, "digests": digests}
        return zlib.compress(json.dumps(said).encode())

    def decode(self, data: bytes) -> ItemRecord:
        """See `StagedItem.decode`."""
        said = json.loads(zlib.decompress(data))
        arrays = [
            ArrayRecord(name, (), "", "", (), (), digests)
            for name, digests in said["digests"].items()
        ]
        return ItemRecord(None, Written(arrays, said["process"], said["anything"]))

    async def write(self, area: WriteArea) -> ItemRecord:
        """Writes the chunks of this process."""
        anything = any(array.is_written for array in self.arrays)
        if self.me is not None:
            area = area.child(_DATABASE.format(self.me))
        records = await write_arrays(area.kv_target(), self.arrays, self.options, label=area.label)
        return ItemRecord(self.described.orbax_reason, Written(records, self.me, anything))

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Merges the databases that the records tell of, and writes the documents.

        Each database has the chunks that its process told of; their contents are compared
        with the digests when they are read.

        Raises:
            MetadataError: A chunk of an array was written by nobody, or twice, or is none of it;
                or a database has other chunks than its process told of.
        """
        written = [record.detail for record in records]
        arrays = await asyncio.to_thread(_joined, self.me, written)
        if self.me is not None:
            parts = [part for part in written if part.anything]
            targets = [area.child(_DATABASE.format(part.process)).kv_target() for part in parts]
            found = await asyncio.gather(*(stored_keys(t, label=area.label) for t in targets))
            for part, keys in zip(parts, found, strict=True):
                await asyncio.to_thread(_require_told, part, keys, arrays)
            if targets:
                sources: list[tuple[KvTarget, Mapping[str, str]]] = [(t, {}) for t in targets]
                await merge_databases(area.kv_target(), sources, label=area.label)
        # Encoding thousands of leaves is work for the CPU: not on the storage loop.
        await put_documents(area, await asyncio.to_thread(self._encode, arrays))

    @uncollected()
    def _encode(self, written: Sequence[ArrayRecord]) -> dict[str, bytes]:
        return encode_documents(
            documents(self.described, written, self.handler, self.custom_metadata)
        )


def _differing(wanted: AbstractSet[str], written: Sequence[Written], name: str) -> str:
    """Which chunks nobody wrote, and which an array does not have, with who wrote these."""
    found = {
        chunk: part.process
        for part in written
        for record in part.arrays
        if record.name == name
        for chunk in record.digests
    }
    said = []
    if lacking := sorted(wanted - found.keys())[:_SHOWN]:
        said.append(f"no process wrote its chunks {lacking}")
    if unknown := sorted(found.keys() - wanted)[:_SHOWN]:
        who = sorted({str(found[chunk]) for chunk in unknown})
        said.append(f"chunks {unknown} of process {', '.join(who)} are none of it")
    return "; ".join(said)


def _joined(me: int | None, written: Sequence[Written]) -> list[ArrayRecord]:
    """A record of each array with the digests of all its chunks, whoever wrote them."""
    own = next(part for part in written if part.process == me)
    digests: dict[str, dict[str, str]] = {array.name: {} for array in own.arrays}
    for part in written:
        for record in part.arrays:
            if record.name not in digests:
                raise MetadataError(f"process {part.process} wrote {record.name!r}, unasked")
            twice = digests[record.name].keys() & record.digests.keys()
            if twice:
                raise MetadataError(
                    f"the array {record.name!r}: chunk {min(twice)} was written twice, the "
                    f"second time by process {part.process}"
                )
            digests[record.name].update(record.digests)
    joined = []
    for record in own.arrays:
        region = plan.whole(record.shape)
        wanted = {
            plan.chunk_name(index)
            for index, _ in plan.chunks_of(record.shape, record.chunk_shape, region)
        }
        found = digests[record.name]
        if found.keys() != wanted:
            raise MetadataError(
                f"the array {record.name!r}: {_differing(wanted, written, record.name)}"
            )
        joined.append(dataclasses.replace(record, digests=found))
    return joined


def _require_told(part: Written, keys: AbstractSet[str], arrays: Sequence[ArrayRecord]) -> None:
    """Refuses a database that has not exactly the chunks that its process told of.

    Args:
        part: What the process told of.
        keys: What is in its database.
        arrays: All arrays, with their shapes.
    """
    told = {formats.metadata_key(array.name) for array in part.arrays if array.digests}
    for array in part.arrays:
        for chunk in array.digests:
            index = tuple(map(int, chunk.split("."))) if chunk else ()
            told.add(formats.chunk_key(array.name, index))
    empty = {formats.metadata_key(array.name) for array in arrays if not array.digests}
    for problem, found in (
        ("does not have all that the process told of; it lacks", told - keys),
        ("has what the process did not tell of:", keys - told - empty),
    ):
        if found:
            raise MetadataError(
                f"the database of process {part.process} {problem} {sorted(found)[:_SHOWN]}"
            )
