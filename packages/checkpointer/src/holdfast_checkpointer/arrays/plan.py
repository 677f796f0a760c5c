"""Which chunks an array is cut into. Pure arithmetic, no bytes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

Shape = tuple[int, ...]
Region = tuple[slice, ...]
_CRUMB = 16  # a chunk so many times smaller than it may be
_MOST_PARTS = 1 << 16


def chunk_shape(
    shape: Shape, write_shape: Shape, itemsize: int, limit: int, first: Sequence[int] = ()
) -> Shape:
    """The shape of a chunk of at most `limit` bytes (or one element).

    Chunks of what one device wrote are cut along the leading axes, so that a chunk is
    contiguous in the buffer it comes from. No chunk straddles two devices' shards. An axis
    that one device had whole is cut into a power of two of parts: so are the meshes that will
    read them. A divided axis whose length has only divisors that make crumbs, such as a
    prime, is cut after the others; it stays whole, and the chunk larger than `limit`, if it
    would be cut into more than 65,536 parts.

    Args:
        shape: Of the whole array.
        write_shape: Of one device's shard; every shard has it.
        itemsize: Bytes per element.
        limit: Bytes per chunk.
        first: Axes to cut before the leading ones.

    Examples:
        >>> chunk_shape((1024, 1024), (1024, 1024), 4, 1 << 20)
        (256, 1024)
        >>> chunk_shape((0, 3), (0, 3), 4, 1 << 20)
        (1, 3)
    """
    found = [max(1, size) for size in write_shape]
    axes = [*first, *(axis for axis in range(len(found)) if axis not in first)]
    crumbling = []
    for axis in axes:
        if math.prod(found) * itemsize <= limit:
            break
        is_divided = write_shape[axis] != shape[axis]
        part = _part(found, axis, itemsize, limit, divided=is_divided)
        if is_divided and math.prod(found) // found[axis] * part * itemsize * _CRUMB < limit:
            crumbling.append(axis)
        else:
            found[axis] = part
    for axis in crumbling:
        if math.prod(found) * itemsize > limit:
            part = _part(found, axis, itemsize, limit, divided=True)
            if found[axis] // part <= _MOST_PARTS:
                found[axis] = part
    return tuple(found)


def _part(found: Sequence[int], axis: int, itemsize: int, limit: int, *, divided: bool) -> int:
    """How long a part of an axis is to be, the others being as found."""
    longest = max(1, limit // (math.prod(found) * itemsize // found[axis]))
    parts = -(-found[axis] // longest)
    if divided:
        return _even_part(found[axis], parts)
    parts = min(found[axis], 1 << (parts - 1).bit_length())
    return -(-found[axis] // parts)


def _even_part(size: int, parts: int) -> int:
    """The largest divisor of `size` that makes at least `parts` parts."""
    small = [n for n in range(1, math.isqrt(size) + 1) if size % n == 0]
    return max(n for n in (*small, *(size // n for n in small)) if n * parts <= size)


def grid(shape: Shape, chunk: Shape) -> Shape:
    """How many chunks there are along each axis."""
    return tuple(-(-size // step) for size, step in zip(shape, chunk, strict=True))


def chunks_of(shape: Shape, chunk: Shape, region: Region) -> Iterator[tuple[Shape, Region]]:
    """Yields (index, in-bounds region) of every chunk that touches `region`."""
    spans = [
        range(part.start // step, -(-part.stop // step))
        for part, step in zip(region, chunk, strict=True)
    ]
    for index in itertools.product(*spans):
        yield (
            index,
            tuple(
                slice(i * step, min((i + 1) * step, size))
                for i, step, size in zip(index, chunk, shape, strict=True)
            ),
        )


def cover(shape: Shape, chunk: Shape, region: Region) -> Region:
    """The smallest region of whole chunks that contains `region`."""
    return tuple(
        slice(part.start // step * step, min(-(-part.stop // step) * step, size))
        for part, step, size in zip(region, chunk, shape, strict=True)
    )


def whole(shape: Shape) -> Region:
    """The region that is everything."""
    return tuple(slice(0, size) for size in shape)


def normalized(index: Sequence[slice], shape: Shape) -> Region:
    """A device's index with every bound spelled out."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def within(inner: Region, outer: Region) -> Region:
    """`inner` in the coordinates of a buffer that holds `outer`."""
    return tuple(
        slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True)
    )


def intersection(one: Region, other: Region) -> Region:
    """What two regions that overlap have in common."""
    return tuple(
        slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)
    )


def clipped(region: Region, shape: Shape) -> Region:
    """The part of a region that lies inside a shape; it may be empty."""
    return tuple(
        slice(min(part.start, size), min(part.stop, size))
        for part, size in zip(region, shape, strict=True)
    )


def extent(region: Region) -> Shape:
    """The shape of a region."""
    return tuple(part.stop - part.start for part in region)


def chunk_name(index: Shape) -> str:
    """A chunk's index as the digests spell it."""
    return ".".join(map(str, index))
