"""Which bytes of a file hold a part of a tensor, and which are read with one request.

Pure arithmetic. A *piece* is a run of bytes that is read in one go, and what it fills: rows of
one axis, whole in all axes behind it, of which the wanted part is then cut out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from holdfast_checkpointer.arrays.plan import Region, Shape, extent

Owner = TypeVar("Owner")


@dataclass(frozen=True)
class Economy:
    """When bytes that nobody wants are read to save a request.

    Attributes:
        gap: As many bytes cost no more than a request.
        ratio: At most so many times the wanted bytes are read; None leaves it to `gap`.
        piece: Bytes of one request at most, wherever one row is smaller.
    """

    gap: int
    ratio: float | None
    piece: int

    def bridges(self, gap: int, read: int, wanted: int) -> bool:
        """Whether to read a gap, which makes it `read` bytes for `wanted`."""
        if self.ratio is not None:
            return read <= self.ratio * wanted
        return gap <= self.gap


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of bytes and what it fills.

    Attributes:
        start: First byte, from the start of the tensor.
        stop: End of it.
        shape: The bytes as an array of elements.
        inside: The part of that array that is wanted.
        target: Where that goes in the array that holds the region.
        wanted: How many of the bytes that is.
    """

    start: int
    stop: int
    shape: Shape
    inside: Region
    target: Region
    wanted: int


def pieces_of(shape: Shape, itemsize: int, region: Region, economy: Economy) -> Iterator[Piece]:
    """The pieces that hold a region of a tensor, in the order of their bytes.

    Examples:
        >>> small = Economy(gap=0, ratio=1.0, piece=1 << 20)
        >>> rows = (slice(2, 4), slice(0, 3))
        >>> [(p.start, p.stop) for p in pieces_of((5, 3), 4, rows, small)]
        [(24, 48)]
        >>> columns = (slice(0, 2), slice(1, 3))
        >>> [(p.start, p.stop) for p in pieces_of((5, 3), 4, columns, small)]
        [(4, 12), (16, 24)]
    """
    if 0 in extent(region):
        return
    if not shape:
        yield Piece(0, itemsize, (), (), (), itemsize)
        return
    strides = [math.prod(shape[axis + 1 :]) * itemsize for axis in range(len(shape))]
    axis = _axis(shape, strides, region, economy)
    rows = max(1, economy.piece // strides[axis])
    inner = region[axis + 1 :]
    wanted = math.prod(extent(inner)) * itemsize
    behind = tuple(slice(0, part.stop - part.start) for part in inner)
    for index in itertools.product(*(range(p.start, p.stop) for p in region[:axis])):
        base = sum(i * stride for i, stride in zip(index, strides, strict=False))
        before = tuple(
            slice(i - p.start, i - p.start + 1) for i, p in zip(index, region, strict=False)
        )
        for first in range(region[axis].start, region[axis].stop, rows):
            last = min(first + rows, region[axis].stop)
            begin = first - region[axis].start
            yield Piece(
                start=base + first * strides[axis],
                stop=base + last * strides[axis],
                shape=(*(1 for _ in index), last - first, *shape[axis + 1 :]),
                inside=(*(slice(0, 1) for _ in index), slice(0, last - first), *inner),
                target=(*before, slice(begin, begin + last - first), *behind),
                wanted=(last - first) * wanted,
            )


def _axis(shape: Shape, strides: Sequence[int], region: Region, economy: Economy) -> int:
    """The axis along which whole rows are read; before it every index is read by itself.

    The further in it is, the less is read that nobody wants, with more requests.
    """
    sizes = extent(region)
    axis = len(shape) - 1
    while axis and strides[axis - 1] <= economy.piece:
        whole = strides[axis - 1] * sizes[axis - 1]
        needed = math.prod(sizes[axis - 1 :]) * strides[-1]
        gap = (shape[axis] - sizes[axis]) * strides[axis]
        if not economy.bridges(gap, whole, needed):
            break
        axis -= 1
    return axis


@dataclass
class Read(Generic[Owner]):
    """One request: consecutive bytes of a file, and the pieces in them.

    Attributes:
        start: First byte in the file.
        stop: End of it.
        pieces: With each what it belongs to, and where its tensor starts in the file.
        wanted: How many of the bytes anybody wants.
    """

    start: int
    stop: int
    pieces: list[tuple[Owner, int, Piece]] = field(default_factory=list)
    wanted: int = 0


def coalesced(
    pieces: Sequence[tuple[Owner, int, Piece]], economy: Economy
) -> Iterator[Read[Owner]]:
    """Puts pieces of one file together into requests.

    Args:
        pieces: Each with what it belongs to, and where its tensor starts in the file.
        economy: When to read what nobody wants.
    """
    read: Read[Owner] | None = None
    for owner, origin, piece in sorted(pieces, key=lambda p: p[1] + p[2].start):
        start, stop = origin + piece.start, origin + piece.stop
        if read is not None:
            end = max(read.stop, stop)
            size, wanted = end - read.start, read.wanted + piece.wanted
            joins = size <= economy.piece and economy.bridges(start - read.stop, size, wanted)
            if not joins:
                yield read
                read = None
        if read is None:
            read = Read(start, stop)
        read.stop = max(read.stop, stop)
        read.pieces.append((owner, origin, piece))
        read.wanted += piece.wanted
    if read is not None:
        yield read
