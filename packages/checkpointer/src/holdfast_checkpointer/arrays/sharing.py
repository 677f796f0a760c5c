"""Which process of a job writes which chunks of an array.

Every process computes the same answer from what all of them know: the array's sharding, its
place in the tree, and the processes that take part. Nothing is exchanged. What several
processes hold is divided among them chunk by chunk; an array of one chunk goes to one of
them, another for the next array.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

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


@dataclass(frozen=True)
class Share:
    """How the arrays of a save are divided.

    Attributes:
        me: This process.
        processes: Those that take part, in order.
        chunk_bytes: A chunk is at most this large, unless an array has a rule of its own.
    """

    me: int
    processes: tuple[int, ...]
    chunk_bytes: int

    def part(
        self,
        value: Any,
        position: int,
        write_shape: plan.Shape | None,
        itemsize: int,
        chunk_bytes: int | None,
        axes: Sequence[int],
    ) -> ArrayPart:
        """What this process writes of one array.

        Args:
            value: The array.
            position: Its number among the arrays of the save.
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
        return self.divided(shape, placed, position, write_shape, itemsize, chunk_bytes, axes)

    def divided(
        self,
        shape: plan.Shape,
        placed: Mapping[Any, Any] | None,
        position: int,
        write_shape: plan.Shape | None,
        itemsize: int,
        chunk_bytes: int | None,
        axes: Sequence[int],
    ) -> ArrayPart:
        """`part` of an array that need not exist.

        Args:
            shape: Its shape.
            placed: What each device has of it; None if each process has everything.
            position: See `part`.
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
        chunk = plan.chunk_shape(
            shape, write_shape, itemsize, chunk_bytes or self.chunk_bytes, axes
        )
        owned = set()
        for region, processes in regions:
            for number, (index, _) in enumerate(plan.chunks_of(shape, chunk, region)):
                if processes[(position + number) % len(processes)] == self.me:
                    owned.add(index)
        empty = 0 in shape
        describes = empty and self.processes[position % len(self.processes)] == self.me
        return ArrayPart(write_shape, chunk, frozenset(owned), describes, everywhere)

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
