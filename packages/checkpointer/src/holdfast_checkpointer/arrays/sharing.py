"""Which process of a job writes which chunks of an array.

Every process computes the same answer from what all of them know: the arrays' shardings, their
order in the tree, and the processes that take part. Nothing is exchanged. What several
processes hold is cut into a slice for each, if that is not too small, and each chunk goes to
that one of them which has the fewest bytes to write so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Slicing:
    """How what several processes hold is cut for them.

    Attributes:
        enabled: Whether they divide it; else the first of them writes it.
        least_bytes: No slice is made smaller.
        most_replicas: Among how many it is cut at most; None for all.
    """

    enabled: bool = True
    least_bytes: int = 4 * MIB
    most_replicas: int | None = None

    def bytes_each(self, size: int, replicas: int) -> int | None:
        """The size of a slice of a shard; None if it stays whole."""
        parts = min(replicas, self.most_replicas or replicas)
        if not self.enabled or parts < 2 or size < 2 * self.least_bytes:
            return None
        return max(self.least_bytes, -(-size // parts))


@dataclass
class Share:
    """How the arrays of a save are divided; asked for one array after the other, in order.

    Attributes:
        me: This process.
        processes: Those that take part, in order.
        chunk_bytes: A chunk is at most this large, unless an array has a rule of its own.
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
            chunk_bytes: The array's own limit of a chunk.
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
        limit = chunk_bytes or self._limit(write_shape, itemsize, [who for _, who in regions])
        chunk = plan.chunk_shape(shape, write_shape, itemsize, limit, axes)
        owned = set()
        for region, processes in regions:
            where = np.searchsorted(self.processes, processes)
            for index, box in plan.chunks_of(shape, chunk, region):
                if self._next(where, math.prod(plan.extent(box)) * itemsize) == self.me:
                    owned.add(index)
        describes = 0 in shape and self._next(np.arange(len(self.processes)), 0) == self.me
        return ArrayPart(write_shape, chunk, frozenset(owned), describes, everywhere)

    def _limit(
        self, write_shape: plan.Shape, itemsize: int, holders: Sequence[tuple[int, ...]]
    ) -> int:
        """How large a chunk may be, so that each replica can write its slice."""
        size = math.prod(write_shape) * itemsize
        each = self.slicing.bytes_each(size, min((len(who) for who in holders), default=1))
        return self.chunk_bytes if each is None else min(self.chunk_bytes, each)

    def _next(self, where: Any, size: int) -> int:
        """The process that writes some bytes, of those at `where`, which notes them."""
        chosen = int(where[0])
        if self.slicing.enabled and len(where) > 1:
            chosen = int(where[np.argmin(self._load[where])])
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
