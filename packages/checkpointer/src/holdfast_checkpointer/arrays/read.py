"""Reading arrays: into fresh memory, chunk by chunk, compared with their digests."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import tensorstore as ts

from holdfast_checkpointer import progress
from holdfast_checkpointer.arrays import failures, formats, plan
from holdfast_checkpointer.arrays.buffers import ByteBudget, aligned_empty
from holdfast_checkpointer.arrays.formats import ArrayFormat
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.pieces import OverRead, Piece, pieces_of
from holdfast_checkpointer.arrays.survey import StoredShape, survey
from holdfast_checkpointer.arrays.write import digest_array
from holdfast_checkpointer.bursts import uncollected
from holdfast_metadata import digest_bytes, dtype_from_name
from holdfast_storage import KvTarget, errors

_SMALL = 256 << 10
_CHUNK = 16 << 20


@dataclass(frozen=True)
class ArrayRequest:
    """Which parts of which array to read.

    Attributes:
        name: Its parameter name.
        leaf: What to call it in messages.
        shape: As saved; None if only the array itself knows (Orbax's).
        dtype: Name as saved; None likewise.
        storage_dtype: Name of the dtype on disk, if another.
        chunk_shape: As saved; None without digests.
        digests: By chunk index; None if there are none (Orbax's).
        regions: The parts wanted; None for the whole.
        writable: Whether the caller gets the memory itself and may write to it.
    """

    name: str
    leaf: str
    shape: plan.Shape | None = None
    dtype: str | None = None
    storage_dtype: str | None = None
    chunk_shape: plan.Shape | None = None
    digests: Mapping[str, str] | None = None
    regions: Sequence[plan.Region] | None = None
    writable: bool = True


Parts = list[np.ndarray[Any, Any]]


class ArraySource(Protocol):
    """Where the arrays of an item come from; see `ArrayReader`."""

    async def read(self, requests: Sequence[ArrayRequest]) -> list[Parts]:
        """Reads all requests; each gives an array per wanted region, in fresh memory."""
        ...

    async def describe_all(self, names: Sequence[tuple[str, str]]) -> list[StoredShape]:
        """What arrays say of themselves, in order; of each its name and what its leaf is called."""
        ...


class ArrayReader:
    """Reads arrays of one item. One per operation; its caches go with it.

    Args:
        target: Where the item's arrays are.
        layout: How they are laid out.
        options: How to read.
        label: For messages.
    """

    def __init__(
        self,
        target: KvTarget,
        layout: ArrayFormat,
        options: ArrayLoadOptions,
        *,
        label: str = "",
    ) -> None:
        self._target = target
        self._layout = layout
        self._options = options
        self._label = label
        self._context = formats.context_for(target)
        in_flight = options.bytes_in_flight
        if in_flight is None:
            in_flight = _CHUNK * max(2, target.hints.max_concurrency // 2)
        self._budget = ByteBudget(in_flight)
        self._over_read = OverRead()

    async def read(self, requests: Sequence[ArrayRequest]) -> list[Parts]:
        """Reads all requests; each gives an array per wanted region.

        The arrays are fresh memory that nothing else refers to.

        Raises:
            DamagedCheckpointError: Bytes differ from what was saved, or are missing; names
                the leaf. Nothing is ever filled in.
        """
        results: list[Parts | None] = [None] * len(requests)
        small = [i for i, request in enumerate(requests) if self._is_plain(request)]
        for i, parts in zip(
            small, await self._read_plain([requests[i] for i in small]), strict=True
        ):
            results[i] = parts
        rest = [i for i, found in enumerate(results) if found is None]
        read = await asyncio.gather(*(self._read_one(requests[i]) for i in rest))
        for i, parts in zip(rest, read, strict=True):
            results[i] = parts
        self._over_read.report()
        return [found for found in results if found is not None]

    def _translated(self, leaf: str) -> AbstractContextManager[None]:
        return failures.reading(leaf, self._label, self._target)

    async def describe_all(self, names: Sequence[tuple[str, str]]) -> list[StoredShape]:
        """What arrays say of themselves, in order; see `survey`.

        Raises:
            DamagedCheckpointError: The metadata of one is missing or is none.
        """
        return await survey(self._target, self._layout, names, label=self._label)

    async def _open(self, name: str) -> ts.TensorStore:
        spec = formats.array_spec(self._target, name, self._layout)
        return await ts.open(spec, context=self._context)

    def _is_plain(self, request: ArrayRequest) -> bool:
        """Whether one value of the database may be the whole array, as we write small ones."""
        if request.digests is None or request.shape is None or request.dtype is None:
            return False
        if request.regions is not None or not self._layout.ocdbt:
            return False
        size = math.prod(request.shape) * dtype_from_name(request.dtype).itemsize
        return 0 < size <= _SMALL and request.chunk_shape == request.shape

    async def _read_plain(self, requests: Sequence[ArrayRequest]) -> list[Parts | None]:
        """Reads values directly; None where one is not the array's bytes as they are."""
        if not requests:
            return []
        with self._translated(requests[0].leaf):
            spec = formats.database_spec(self._target, write=False)
            store = await ts.KvStore.open(spec, context=self._context)
            batch = ts.Batch()
            futures = [
                store.read(formats.chunk_key(r.name, (0,) * len(r.shape or ())), batch=batch)
                for r in requests
            ]
            batch.submit()
        return await asyncio.to_thread(self._decode_all, requests, futures)

    @uncollected()
    def _decode_all(self, requests: Sequence[ArrayRequest], futures: Any) -> list[Parts | None]:
        """In a thread: awaited one by one, each would cost a turn of the loop."""
        found = []
        for request, future in zip(requests, futures, strict=True):
            with self._translated(request.leaf):
                result = future.result()
            found.append(self._decode_plain(request, result))
        return found

    def _decode_plain(self, request: ArrayRequest, result: Any) -> Parts | None:
        assert request.shape is not None
        assert request.dtype is not None
        assert request.digests is not None
        if result.state == "missing":
            raise self._damaged(request, "its chunk is missing")
        dtype = dtype_from_name(request.dtype)
        value = result.value
        if len(value) != math.prod(request.shape) * dtype.itemsize:
            return None  # compressed: the array's own metadata will tell
        if self._options.verify:
            expected = request.digests.get(plan.chunk_name((0,) * len(request.shape)))
            if digest_bytes(value) != expected:
                return None  # damaged, or compressed to just this length: likewise
        array = np.frombuffer(value, dtype).reshape(request.shape)
        return [array.copy() if request.writable else array]

    async def _read_one(self, request: ArrayRequest) -> Parts:
        if request.regions is not None and not request.regions:
            return []
        with self._translated(request.leaf):
            array = await self._open(request.name)
        shape = tuple(array.shape)
        stored = np.dtype(array.dtype.numpy_dtype)
        dtype = dtype_from_name(request.dtype) if request.dtype else stored
        expected = dtype_from_name(request.storage_dtype) if request.storage_dtype else dtype
        if request.shape is not None and (shape, stored) != (request.shape, expected):
            raise self._damaged(
                request, f"it is {stored}{list(shape)}, {expected}{list(request.shape)} was saved"
            )
        regions = request.regions if request.regions is not None else [plan.whole(shape)]
        chunk = request.chunk_shape or _chunk_of(array)
        pieces = pieces_of(shape, chunk, regions)
        self._over_read.note(request.leaf, chunk, pieces, stored.itemsize)
        buffers = [aligned_empty(plan.extent(region), stored) for region in regions]
        await _all(self._read_piece(request, array, piece, regions, buffers) for piece in pieces)
        return [buffer.view(dtype) for buffer in buffers] if stored != dtype else buffers

    async def _read_piece(
        self,
        request: ArrayRequest,
        array: ts.TensorStore,
        piece: Piece,
        regions: Sequence[plan.Region],
        buffers: Parts,
    ) -> None:
        """Reads one chunk, whole, verifies it, and leaves what is wanted in the buffers."""
        verify = self._options.verify and request.digests is not None
        box = piece.region if verify else piece.wanted
        (position, wanted), *others = piece.takers
        direct = not others and wanted == box
        if direct:
            # The ellipsis keeps a rank-0 buffer a view: without it NumPy gives a copy.
            inside: Any = (*plan.within(wanted, regions[position]), ...)
            target = buffers[position][inside]
        else:
            target = np.empty(plan.extent(box), buffers[position].dtype)
        size = math.prod(plan.extent(piece.region)) * target.dtype.itemsize
        async with self._budget.hold(size):
            with self._translated(request.leaf):
                await ts.array(target).write(array[box])
            if verify:
                await self._verify(request, piece, target)
            progress.note()
            if not direct:
                for position, wanted in piece.takers:
                    inside = plan.within(wanted, regions[position])
                    buffers[position][inside] = target[plan.within(wanted, box)]

    async def _verify(
        self, request: ArrayRequest, piece: Piece, target: np.ndarray[Any, Any]
    ) -> None:
        assert request.digests is not None
        data = target if target.flags.c_contiguous else np.ascontiguousarray(target)
        if data.nbytes >= _SMALL:
            digest = await asyncio.to_thread(digest_array, data)
        else:
            digest = digest_array(data)
        name = plan.chunk_name(piece.index)
        if digest != request.digests.get(name):
            raise self._damaged(request, f"chunk {name} has other bytes than were saved")

    def _damaged(self, request: ArrayRequest, why: str) -> errors.DamagedCheckpointError:
        return errors.DamagedCheckpointError(
            f"the array of leaf {request.leaf!r} is damaged: {why}",
            leaf=request.leaf,
            file=request.name,
            root=self._label,
        )


async def _all(coroutines: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Runs all at once; the first that fails stops the others, and they have ended."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise


def _chunk_of(array: ts.TensorStore) -> plan.Shape:
    """The chunk shape that an array itself tells; the whole array where it does not."""
    told = array.chunk_layout.read_chunk.shape or array.shape
    return tuple(
        max(1, size if part is None else part) for part, size in zip(told, array.shape, strict=True)
    )
