"""Reading parts of tensors: byte ranges, together where that is cheaper, into fresh memory."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from holdfast_checkpointer.arrays import plan
from holdfast_checkpointer.arrays.buffers import ByteBudget, aligned_empty
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArrayRequest, Parts
from holdfast_checkpointer.arrays.survey import StoredShape
from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.safetensors.dtypes import DTYPES, is_packed, unpacked
from holdfast_checkpointer.safetensors.files import TensorFile, TensorFiles
from holdfast_checkpointer.safetensors.header import TensorInfo
from holdfast_checkpointer.safetensors.options import SafetensorsOptions
from holdfast_checkpointer.safetensors.ranges import Economy, Piece, Read, coalesced, pieces_of
from holdfast_storage import ByteRange, DamagedCheckpointError, ObjectNotFoundError, keys

_PIECE = 16 << 20
_SMALL = 256 << 10


@dataclass(eq=False)
class _Part:
    """One wanted part of one tensor, while it is read."""

    file: TensorFile
    tensor: TensorInfo
    region: plan.Region
    buffer: np.ndarray[Any, Any]

    def result(self) -> np.ndarray[Any, Any]:
        if not is_packed(self.tensor.dtype):
            return self.buffer
        whole = unpacked(self.buffer, self.tensor.dtype, self.tensor.shape)
        return np.array(whole[self.region])


class TensorReader:
    """Reads tensors of safetensors files; see `ArraySource`.

    Args:
        files: Whose headers were read.
        loading: How many bytes may be under way.
        options: What may be read beyond what is wanted.
    """

    def __init__(
        self, files: TensorFiles, loading: ArrayLoadOptions, options: SafetensorsOptions
    ) -> None:
        self._files = files
        self._backend = files.found.backend
        hints = self._backend.hints
        piece = options.read_chunk_bytes or _PIECE
        self._economy = Economy(hints.coalesce_bytes, options.max_over_read_ratio, piece)
        self._limit = asyncio.Semaphore(max(1, hints.max_concurrency))
        in_flight = loading.bytes_in_flight
        if in_flight is None:
            in_flight = piece * max(2, hints.max_concurrency // 2)
        self._budget = ByteBudget(in_flight)

    async def read(self, requests: Sequence[ArrayRequest]) -> list[Parts]:
        """Reads all requests; each gives an array per wanted region, in fresh memory.

        Raises:
            DamagedCheckpointError: Bytes are missing; names file and tensor.
        """
        parts = [
            [self._part(request, region) for region in _regions(request)] for request in requests
        ]
        pieces: dict[str, list[tuple[_Part, int, Piece]]] = {}
        for part in (part for some in parts for part in some):
            pieces.setdefault(part.file.info.key, []).extend(self._pieces(part))
        reads = [
            (key, read) for key, some in pieces.items() for read in coalesced(some, self._economy)
        ]
        await run_all([self._fill(key, read) for key, read in reads])
        return [[part.result() for part in some] for some in parts]

    async def describe_all(self, names: Sequence[tuple[str, str]]) -> list[StoredShape]:
        """What the headers say of tensors, in order; no I/O."""
        found = (self._files.tensors[name][1] for name, _ in names)
        return [StoredShape(one.shape, DTYPES[one.dtype], one.shape) for one in found]

    def _part(self, request: ArrayRequest, region: plan.Region) -> _Part:
        file, tensor = self._files.tensors[request.name]
        if is_packed(tensor.dtype):  # an element may begin inside a byte: all of them are read
            buffer = aligned_empty((tensor.stop - tensor.start,), np.dtype(np.uint8))
        else:
            buffer = aligned_empty(plan.extent(region), DTYPES[tensor.dtype])
        return _Part(file, tensor, region, buffer)

    def _pieces(self, part: _Part) -> list[tuple[_Part, int, Piece]]:
        tensor = part.tensor
        shape, region = tensor.shape, part.region
        if is_packed(tensor.dtype):
            shape, region = part.buffer.shape, plan.whole(part.buffer.shape)
        found = pieces_of(shape, part.buffer.dtype.itemsize, region, self._economy)
        return [(part, tensor.start, piece) for piece in found]

    async def _fill(self, key: str, read: Read[_Part]) -> None:
        size = read.stop - read.start
        async with self._budget.hold(size), self._limit:
            try:
                data = await self._backend.get(key, byte_range=ByteRange(read.start, read.stop))
            except ObjectNotFoundError as error:
                raise self._damaged(key, read, "it is gone") from error
            if len(data) != size:
                raise self._damaged(
                    key, read, f"it is cut off: bytes {read.start} to {read.stop} are not all there"
                )
            if size < _SMALL:
                self._scatter(key, read, data)
            else:
                await asyncio.to_thread(self._scatter, key, read, data)

    def _scatter(self, key: str, read: Read[_Part], data: bytes) -> None:
        for part, origin, piece in read.pieces:
            dtype = part.buffer.dtype
            source = np.frombuffer(
                data, dtype, math.prod(piece.shape), origin + piece.start - read.start
            )
            # The ellipsis keeps a rank-0 buffer a view: without it NumPy gives a copy.
            inside: Any = (*piece.inside, ...)
            target: Any = (*piece.target, ...)
            wanted = source.reshape(piece.shape)[inside]
            if dtype == np.bool_ and wanted.view(np.uint8).max() > 1:
                raise self._damaged(key, read, "a BOOL is neither 0 nor 1", part.tensor.name)
            part.buffer[target] = wanted

    def _damaged(
        self, key: str, read: Read[_Part], why: str, tensor: str | None = None
    ) -> DamagedCheckpointError:
        name = read.pieces[0][0].tensor.name if tensor is None else tensor
        return DamagedCheckpointError(
            f"the tensor {name!r} of the file {keys.leaf(key)!r} is damaged: {why}",
            file=keys.leaf(key),
            leaf=name,
            key=key,
            root=self._backend.root,
        )


def _regions(request: ArrayRequest) -> Sequence[plan.Region]:
    assert request.shape is not None
    return request.regions if request.regions is not None else [plan.whole(request.shape)]
