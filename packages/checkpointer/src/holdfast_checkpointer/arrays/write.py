"""Writing arrays: one OCDBT database, chunks digested before they leave."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from holdfast_checkpointer import progress
from holdfast_checkpointer.arrays import failures, formats, plan
from holdfast_checkpointer.arrays.formats import storage_dtype
from holdfast_checkpointer.arrays.options import ArraySaveOptions
from holdfast_checkpointer.arrays.snapshot import StagedArray
from holdfast_checkpointer.multihost.errors import during
from holdfast_metadata import digest_bytes, dtype_name
from holdfast_storage import KvTarget
from holdfast_storage.commit import carry_through

_LARGE_CHUNK = 1 << 20
_BATCH_OF_A_JOB = 4 << 30
_WRITE = "the write"


@dataclass(frozen=True)
class ArrayRecord:
    """What was written of one array.

    Attributes:
        name: Its parameter name.
        shape: Of the whole array.
        dtype: Name of its dtype.
        storage_dtype: Name of the dtype on disk.
        chunk_shape: Of a chunk.
        write_shape: Of what one device held.
        digests: By chunk index.
    """

    name: str
    shape: plan.Shape
    dtype: str
    storage_dtype: str
    chunk_shape: plan.Shape
    write_shape: plan.Shape
    digests: Mapping[str, str]


@dataclass(frozen=True)
class _Chunk:
    index: plan.Shape
    region: plan.Region
    data: np.ndarray[Any, Any]


async def write_arrays(
    target: KvTarget, arrays: Sequence[StagedArray], options: ArraySaveOptions, *, label: str = ""
) -> list[ArrayRecord]:
    """Writes arrays into a new database at the target.

    Args:
        target: Where; nothing may be there.
        arrays: What; their names are unique.
        options: How.
        label: For messages.

    Returns:
        A record per array, in the same order.

    Raises:
        StorageFullError: The disk is full.
        StorageError: Anything else that storage says.
    """
    records = {
        array.name: _record(array, storage_dtype(array.dtype), array.part.chunk_shape, {})
        for array in arrays
        if array.part is not None and not array.is_written
    }
    written = [array for array in arrays if array.is_written]
    if not written:
        return list(records.values())
    with failures.writing(label, target):
        context = formats.context_for(target)
        database = formats.database_spec(
            target, write=True, file_bytes=options.ocdbt_target_data_file_size
        )
        # A batch is one commit, during which nobody can see whether it gets on.
        together = any(array.part is not None for array in written)
        limit = options.bytes_in_flight or (_BATCH_OF_A_JOB if together else None)
        for batch in _batches(written, limit):
            for record in await _write_batch(database, batch, options, context):
                records[record.name] = record
            progress.note()
    return [records[array.name] for array in arrays]


def _batches(arrays: Sequence[StagedArray], limit: int | None) -> Iterator[list[StagedArray]]:
    batch: list[StagedArray] = []
    size = 0
    for array in arrays:
        if batch and limit is not None and size + array.nbytes > limit:
            yield batch
            batch, size = [], 0
        batch.append(array)
        size += array.nbytes
    yield batch


async def _write_batch(
    database: dict[str, Any],
    arrays: Sequence[StagedArray],
    options: ArraySaveOptions,
    context: ts.Context,
) -> list[ArrayRecord]:
    """Writes some arrays in one transaction: all small ones cost one object."""
    transaction = ts.Transaction()
    store = (await ts.KvStore.open(database, context=context)).with_transaction(transaction)
    pending: list[Any] = []
    records = []
    for array in arrays:
        stored = storage_dtype(array.dtype)
        shape = _chunk_shape(array, stored, options)
        if not array.is_converted:
            with during(_WRITE, array.name):
                array = await asyncio.to_thread(array.converted)
        chunks = list(_cut(array, shape))
        digests = await _digest(chunks)
        if array.nbytes <= options.small_leaf_bytes and options.compression is None:
            encoded = formats.encoded_metadata(array.shape, shape, dtype_name(stored))
            pending += _write_small(store, array, encoded, shape, chunks)
        else:
            metadata = formats.zarr_metadata(array.shape, shape, stored, options.compression)
            pending += await _write_large(
                database, array, metadata, chunks, context, transaction, stored
            )
        records.append(_record(array, stored, shape, digests))
        progress.note()
    with during(_WRITE, " to ".join(dict.fromkeys((arrays[0].name, arrays[-1].name)))):
        await _commit(pending, transaction)
    return records


def _chunk_shape(
    array: StagedArray, stored: np.dtype[Any], options: ArraySaveOptions
) -> plan.Shape:
    if array.part is not None:
        return array.part.chunk_shape
    rule = array.rule
    limit = rule.chunk_bytes or options.chunk_bytes
    return plan.chunk_shape(array.shape, array.write_shape, stored.itemsize, limit, rule.shard_axes)


def _record(
    array: StagedArray, stored: np.dtype[Any], chunk_shape: plan.Shape, digests: Mapping[str, str]
) -> ArrayRecord:
    return ArrayRecord(
        name=array.name,
        shape=array.shape,
        dtype=dtype_name(array.dtype),
        storage_dtype=dtype_name(stored),
        chunk_shape=chunk_shape,
        write_shape=array.write_shape,
        digests=digests,
    )


async def _commit(pending: Sequence[Any], transaction: ts.Transaction) -> None:
    """Waits for the writes and commits; if cancelled, only once nothing writes any more.

    Whoever cancels goes on to remove what is here: a file written after that would stay.
    """
    work = asyncio.ensure_future(asyncio.to_thread(_settle, pending, transaction))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        transaction.abort()
        await carry_through(_ended(work))
        raise


async def _ended(work: asyncio.Future[None]) -> None:
    await asyncio.wait([work])
    if not work.cancelled():
        work.exception()  # seen: it is of no interest once the save is cancelled


def _settle(futures: Sequence[Any], transaction: ts.Transaction) -> None:
    """Waits for many futures: awaited one by one, each would cost a turn of the loop."""
    for future in futures:
        future.result()
    transaction.commit_async().result()


def _cut(array: StagedArray, shape: plan.Shape) -> Iterator[_Chunk]:
    if shape == array.shape and len(array.shards) == 1:  # most arrays are one chunk
        shard = array.shards[0]
        yield _Chunk((0,) * len(shape), shard.region, shard.data)
        return
    for shard in array.shards:
        for index, region in plan.chunks_of(array.shape, shape, shard.region):
            if array.part is not None and index not in array.part.owned:
                continue
            part = shard.data[plan.within(region, shard.region)]
            yield _Chunk(index, region, np.ascontiguousarray(part).reshape(part.shape))


async def _digest(chunks: Sequence[_Chunk]) -> dict[str, str]:
    if not chunks or chunks[0].data.nbytes < _LARGE_CHUNK:
        return {plan.chunk_name(c.index): digest_array(c.data) for c in chunks}
    found = await asyncio.gather(*(asyncio.to_thread(digest_array, chunk.data) for chunk in chunks))
    return {plan.chunk_name(c.index): d for c, d in zip(chunks, found, strict=True)}


def digest_array(array: np.ndarray[Any, Any]) -> str:
    """The digest of a C-contiguous array's bytes."""
    return digest_bytes(array.reshape(-1).view(np.uint8))


def _write_small(
    store: ts.KvStore,
    array: StagedArray,
    metadata: bytes,
    shape: plan.Shape,
    chunks: Sequence[_Chunk],
) -> list[Any]:
    """As plain keys: `zarr.json`, and each chunk's bytes (a chunk at the end padded)."""
    pending = [store.write(formats.metadata_key(array.name), metadata)]
    for chunk in chunks:
        data = chunk.data
        if data.shape != shape:
            padded = np.zeros(shape, data.dtype)
            padded[tuple(slice(0, size) for size in data.shape)] = data
            data = padded
        pending.append(store.write(formats.chunk_key(array.name, chunk.index), data.tobytes()))
    return pending


async def _write_large(
    database: dict[str, Any],
    array: StagedArray,
    metadata: dict[str, Any],
    chunks: Sequence[_Chunk],
    context: ts.Context,
    transaction: ts.Transaction,
    stored: np.dtype[Any],
) -> list[Any]:
    """Through zarr3, from the caller's memory: uncompressed bytes are not copied."""
    spec = formats.new_array_spec(database, array.name, metadata)
    opened = await ts.open(spec, context=context, transaction=transaction)
    return [
        opened[chunk.region].write(
            chunk.data.view(stored), can_reference_source_data_indefinitely=True
        )
        for chunk in chunks
    ]
