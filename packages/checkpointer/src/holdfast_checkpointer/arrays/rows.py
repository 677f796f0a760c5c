"""Bytes of replicated arrays, moved from the devices of one replica to those of the others."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from holdfast_checkpointer.arrays.read import ArrayRequest, Parts
from holdfast_checkpointer.arrays.replicas import Replicas, key_of
from holdfast_metadata import dtype_from_name

WORD = np.dtype(np.uint32)


@dataclass(frozen=True)
class Moved:
    """An array to be moved.

    Attributes:
        request: What it is.
        replicas: Where it lies.
        parts: What this process has read of it.
    """

    request: ArrayRequest
    replicas: Replicas
    parts: Parts

    @property
    def dtype(self) -> np.dtype[Any]:
        """As saved."""
        assert self.request.dtype is not None
        return dtype_from_name(self.request.dtype)

    @property
    def size(self) -> int:
        """Bytes on each device."""
        return math.prod(self.replicas.extent) * self.dtype.itemsize


@dataclass(frozen=True)
class Grid:
    """Devices by replica and place, as a key.

    Attributes:
        devices: For each replica its devices.
    """

    devices: tuple[tuple[jax.Device, ...], ...]

    @classmethod
    def of(cls, replicas: Replicas) -> Grid:
        """Those of an array."""
        return cls(tuple(map(tuple, replicas.grid)))

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        """The same, for JAX."""
        return jax.sharding.Mesh(np.array(self.devices, dtype=object), ("replica", "place"))

    @property
    def here(self) -> Iterator[tuple[int, jax.Device]]:
        """This process's devices, each with its replica."""
        for replica, row in enumerate(self.devices):
            for device in row:
                if device.process_index == jax.process_index():
                    yield replica, device


class Rows:
    """For each device of this process the bytes of all its arrays, one after the other.

    Args:
        grid: The devices.
        arrays: What lies on them, in the same order on every process.
        primary: The replica that has the bytes.
    """

    def __init__(
        self,
        grid: Grid,
        arrays: Sequence[Moved],
        primary: int,
    ) -> None:
        self._grid = grid
        self._arrays = arrays
        self._offsets = [0]
        for array in arrays:
            words = -(-array.size // WORD.itemsize)
            self._offsets.append(self._offsets[-1] + words * WORD.itemsize)
        self._sends = {d: r == primary for r, d in grid.here}
        self._got = {
            (i, key_of(region)): np.zeros(self._offsets[i + 1] - self._offsets[i], np.uint8)
            for i, array in enumerate(arrays)
            for region in array.replicas.here()
        }
        for i, array in enumerate(arrays):
            for region, part in zip(array.replicas.here(primary), array.parts, strict=True):
                raw = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
                self._got[i, key_of(region)][: raw.size] = raw

    @property
    def size(self) -> int:
        """Bytes of each device."""
        return self._offsets[-1]

    def move(self, begin: int, end: int) -> None:
        """Has the devices of the other replicas get the bytes from `begin` to `end`."""
        empty = np.zeros(end - begin, np.uint8)
        rows = {
            device: self._row(device, begin, end) if sends else empty
            for device, sends in self._sends.items()
        }
        for device, row in _collective(self._grid, rows).items():
            if not self._sends[device]:
                self._take(device, begin, row)

    def parts(self, i: int) -> Parts:
        """The parts of an array that this process needs, in order."""
        array = self._arrays[i]
        return [
            self._got[i, key_of(region)][: array.size]
            .view(array.dtype)
            .reshape(array.replicas.extent)
            for region in array.replicas.here()
        ]

    def _row(self, device: jax.Device, begin: int, end: int) -> np.ndarray[Any, Any]:
        row = np.empty(end - begin, np.uint8)
        for inside, part in self._within(device, begin, end):
            row[inside] = part
        return row

    def _take(self, device: jax.Device, begin: int, row: np.ndarray[Any, Any]) -> None:
        for inside, part in self._within(device, begin, begin + row.size):
            part[...] = row[inside]

    def _within(
        self, device: jax.Device, begin: int, end: int
    ) -> Iterator[tuple[slice, np.ndarray[Any, Any]]]:
        """Where in a window each array of a device is, and its bytes that are there."""
        for i, array in enumerate(self._arrays):
            first, last = max(begin, self._offsets[i]), min(end, self._offsets[i + 1])
            if first < last:
                held = self._got[i, key_of(array.replicas.regions[device])]
                inside = slice(first - self._offsets[i], last - self._offsets[i])
                yield slice(first - begin, last - begin), held[inside]


def _collective(
    grid: Grid, rows: Mapping[jax.Device, np.ndarray[Any, Any]]
) -> dict[jax.Device, np.ndarray[Any, Any]]:
    """The sum over the replicas, of which all but one have zeros: whole numbers, so exact."""
    mesh = grid.mesh
    length = next(iter(rows.values())).size // WORD.itemsize
    sharding = NamedSharding(mesh, PartitionSpec("replica", "place"))  # type: ignore[no-untyped-call]
    shape = (len(grid.devices), len(grid.devices[0]), length)
    local = [
        jax.device_put(row.view(WORD).reshape(1, 1, length), device) for device, row in rows.items()
    ]
    together = jax.make_array_from_single_device_arrays(shape, sharding, local)
    summed = _summing(mesh)(together)
    return {
        shard.device: np.asarray(shard.data).reshape(-1).view(np.uint8)
        for shard in summed.addressable_shards
    }


@functools.cache
def _summing(mesh: jax.sharding.Mesh) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec("place"))  # type: ignore[no-untyped-call]
    return jax.jit(lambda rows: jnp.sum(rows, axis=0, dtype=WORD), out_shardings=sharding)
