"""Which process of a job writes which chunks of an array.

Every process computes the same answer from what all of them know: the arrays' shardings, their
order in the tree, and the processes that take part. Nothing is exchanged. What several
processes hold is cut into chunks that they can divide evenly. One or more chunks that follow
each other are a slice, which goes to that process which has the fewest bytes to write so far.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import plan


@dataclass(frozen=True)
class ArrayPart:
    """What one process writes of an array.

    Attributes:
        write_shape: Of what one device holds; chunks do not cross its borders.
        chunk_shape: Of a chunk.
        owned: The indices of the chunks to write.
        describes: Whether this process writes the array's own metadata although it owns no
            chunk, because there is none.
        everywhere: Whether each process has the whole array, and must have the same.
    """

    write_shape: plan.Shape
    chunk_shape: plan.Shape
    owned: frozenset[plan.Shape]
    describes: bool
    everywhere: bool

    @property
    def is_written(self) -> bool:
        """Whether there is anything for this process to write."""
        return bool(self.owned) or self.describes


MIB = 1 << 20
Slice = tuple[list[plan.Shape], int]


@dataclass(frozen=True)
class Slicing:
    """How what several processes hold is cut for them.

    Attributes:
        enabled: Whether they divide it; else the first of them writes it.
        least_bytes: No slice of a shard is smaller, unless the shard is; of small chunks it has
            several.
        most_replicas: Among how many a shard is divided at most; None for all that hold it.
    """

    enabled: bool = True
    least_bytes: int = 4 * MIB
    most_replicas: int | None = None

    def writers(self, holders: int) -> int:
        """Among how many of those that hold a shard it is divided at most."""
        return min(holders, self.most_replicas or holders) if self.enabled else 1

    def chunk_limits(self, size: int, writers: int) -> Sequence[int]:
        """How large a chunk of a shard may be, so that it can be divided; the larger first.

        Powers of two of parts, as `plan.chunk_shape` makes them: more than there are writers
        only if these are not a power of two themselves.
        """
        parts = [1 << n for n in range(1, (4 * writers).bit_length())] if writers > 1 else []
        return [-(-size // n) for n in parts if size // n >= self.least_bytes]

    def slices(self, chunks: Sequence[tuple[plan.Shape, int]]) -> Iterator[Slice]:
        """Joins the chunks of a shard, each with its bytes, until they are enough for a slice."""
        rest = sum(size for _, size in chunks)
        indices: list[plan.Shape] = []
        found = 0
        for index, size in chunks:
            indices.append(index)
            found += size
            rest -= size
            if found >= self.least_bytes and (rest >= self.least_bytes or not rest):
                yield indices, found
                indices, found = [], 0
        if indices:
            yield indices, found


@dataclass
class Share:
    """How the arrays of a save are divided; asked for one array after the other, in order.

    Attributes:
        me: This process.
        processes: Those that take part, in order.
        chunk_bytes: A chunk is at most this large, unless an array has a limit of its own.
        slicing: How replicas are cut.
    """

    me: int
    processes: tuple[int, ...]
    chunk_bytes: int
    slicing: Slicing = field(default_factory=Slicing)
    _load: np.ndarray[Any, np.dtype[np.int64]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._load = np.zeros(len(self.processes), np.int64)

    def part(
        self,
        value: Any,
        write_shape: plan.Shape | None,
        itemsize: int,
        chunk_bytes: int | None,
        axes: Sequence[int],
    ) -> ArrayPart:
        """What this process writes of one array.

        Args:
            value: The array.
            write_shape: Of what one device holds, for an array that each process has whole.
            itemsize: Bytes per element on storage.
            chunk_bytes: The array's own limit of a chunk; it is divided all the same.
            axes: Axes to cut first.

        Raises:
            ValueError: A shard is only on processes that take no part.
        """
        shape = tuple(value.shape)
        placed: Mapping[Any, Any] | None = None
        if isinstance(value, jax.Array) and not value.is_fully_addressable:
            placed = value.sharding.devices_indices_map(shape)
        return self.divided(shape, placed, write_shape, itemsize, chunk_bytes, axes)

    def divided(
        self,
        shape: plan.Shape,
        placed: Mapping[Any, Any] | None,
        write_shape: plan.Shape | None,
        itemsize: int,
        chunk_bytes: int | None,
        axes: Sequence[int],
    ) -> ArrayPart:
        """`part` of an array that need not exist.

        Args:
            shape: Its shape.
            placed: What each device has of it; None if each process has everything.
            write_shape: See `part`.
            itemsize: See `part`.
            chunk_bytes: See `part`.
            axes: See `part`.

        Raises:
            ValueError: A shard is only on processes that take no part.
        """
        holders = None if placed is None else self._holders(placed, shape)
        everywhere = holders is None
        regions = [(plan.whole(shape), self.processes)] if holders is None else holders
        write_shape = write_shape or _common_shape(shape, [region for region, _ in regions])
        fewest = min((len(who) for _, who in regions), default=1)
        limit = chunk_bytes or self.chunk_bytes
        chunk = self._chunk_shape(shape, write_shape, itemsize, limit, axes, fewest)
        owned: set[plan.Shape] = set()
        for region, processes in regions:
            where = self._writers(np.searchsorted(self.processes, processes))
            chunks = [
                (index, math.prod(plan.extent(box)) * itemsize)
                for index, box in plan.chunks_of(shape, chunk, region)
            ]
            for indices, size in self.slicing.slices(chunks):
                if self._next(where, size) == self.me:
                    owned.update(indices)
        describes = 0 in shape and self._next(np.arange(len(self.processes)), 0) == self.me
        return ArrayPart(write_shape, chunk, frozenset(owned), describes, everywhere)

    def _chunk_shape(
        self,
        shape: plan.Shape,
        write_shape: plan.Shape,
        itemsize: int,
        limit: int,
        axes: Sequence[int],
        holders: int,
    ) -> plan.Shape:
        """The chunk with which whoever writes most of a shard has least to write."""
        writers = self.slicing.writers(holders)
        limits = self.slicing.chunk_limits(math.prod(write_shape) * itemsize, writers)
        best = plan.chunk_shape(shape, write_shape, itemsize, limit, axes)
        most = _most_of_one(write_shape, best, writers)
        for smaller in limits:
            if smaller >= limit:
                continue
            chunk = plan.chunk_shape(shape, write_shape, itemsize, smaller, axes)
            # No finer limit makes a larger chunk.
            if math.prod(chunk) * itemsize < self.slicing.least_bytes:
                break
            if _most_of_one(write_shape, chunk, writers) < most:
                best, most = chunk, _most_of_one(write_shape, chunk, writers)
        return best

    def _writers(self, where: Any) -> Any:
        """Those that may write something, of those at `where` which hold it."""
        count = self.slicing.writers(len(where))
        if count == len(where) or not self.slicing.enabled:
            return where[:count]
        return where[np.sort(np.argsort(self._load[where], kind="stable")[:count])]

    def _next(self, where: Any, size: int) -> int:
        """The process that writes some bytes, of those at `where`, which notes them."""
        chosen = int(where[0] if len(where) == 1 else where[np.argmin(self._load[where])])
        self._load[chosen] += max(size, 1)  # also what is empty has to be described
        return self.processes[chosen]

    def _holders(
        self, placed: Mapping[Any, Any], shape: plan.Shape
    ) -> list[tuple[plan.Region, tuple[int, ...]]]:
        """Each distinct shard and the processes that have it."""
        found: dict[tuple[tuple[int, int], ...], set[int]] = {}
        for device, index in placed.items():
            region = plan.normalized(index, shape)
            key = tuple((part.start, part.stop) for part in region)
            found.setdefault(key, set()).add(device.process_index)
        regions = []
        for key in sorted(found):
            processes = tuple(p for p in self.processes if p in found[key])
            if not processes:
                raise ValueError(
                    f"the shard {list(key)} is only on processes {sorted(found[key])}, which take "
                    f"no part in this save; these do: {list(self.processes)}"
                )
            regions.append((tuple(slice(*bounds) for bounds in key), processes))
        return regions


def _common_shape(shape: plan.Shape, regions: Sequence[plan.Region]) -> plan.Shape:
    """The largest block of which every shard is made, those at the end excepted."""
    found = []
    for axis, size in enumerate(shape):
        borders = {part.start for part in (region[axis] for region in regions)}
        borders |= {part.stop for part in (region[axis] for region in regions)} - {size}
        found.append(math.gcd(*borders) or size)
    return tuple(found)


def _most_of_one(whole: plan.Shape, chunk: plan.Shape, writers: int) -> int:
    """How many elements one of several writes at least, if they divide a shard's chunks."""
    return -(-math.prod(plan.grid(whole, chunk)) // writers) * math.prod(chunk)
