"""Which devices hold the same: the replicas of an array along one axis of its mesh."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import plan


@dataclass(frozen=True)
class Replicas:
    """An array that lies in several replicas, of which one is read.

    Attributes:
        grid: The devices, by replica and by place within it; of shape [replicas, devices].
        regions: The part of the array on each device.
        extent: The shape of each of these parts.
    """

    grid: Any
    regions: dict[jax.Device, plan.Region]
    extent: plan.Shape

    def here(self, replica: int | None = None) -> list[plan.Region]:
        """The distinct parts on this process's devices, of all replicas or of one."""
        devices = self.grid.flat if replica is None else self.grid[replica]
        found = {}
        for device in devices:
            if device.process_index == jax.process_index():
                region = self.regions[device]
                found[key_of(region)] = region
        return [found[key] for key in sorted(found)]


def key_of(region: plan.Region) -> tuple[tuple[int, int], ...]:
    """A part of an array, as a key."""
    return tuple((part.start, part.stop) for part in region)


def replicas_of(
    sharding: Any, shape: plan.Shape, axis: int, primary: int, processes: Sequence[int]
) -> Replicas | None:
    """The replicas of an array along an axis of its mesh.

    Args:
        sharding: Of the array.
        shape: Of the array.
        axis: The index of the mesh's axis.
        primary: The replica that is read.
        processes: Those that load together.

    Returns:
        None where each process has to read what it needs: the array is not replicated along
        the axis, or its mesh is not that of all these processes, or none of them is without a
        device of the replica that is read.

    Raises:
        ValueError: The mesh has no such replica.
    """
    if not isinstance(sharding, jax.sharding.NamedSharding) or 0 in shape:
        return None
    mesh = sharding.mesh
    devices = np.asarray(mesh.devices)
    if axis >= devices.ndim or devices.shape[axis] < 2:
        return None
    if mesh.axis_names[axis] in _used(sharding.spec) or sharding.memory_kind not in _ordinary(
        devices.flat[0]
    ):
        return None
    if primary >= devices.shape[axis]:
        raise ValueError(
            f"primary_replica_id={primary}: the axis {mesh.axis_names[axis]!r} of the mesh has "
            f"{devices.shape[axis]} replicas, 0 to {devices.shape[axis] - 1}"
        )
    grid = np.moveaxis(devices, axis, 0).reshape(devices.shape[axis], -1)
    readers = {device.process_index for device in grid[primary]}
    if {device.process_index for device in grid.flat} != set(processes) or readers == set(
        processes
    ):
        return None
    regions = {
        device: plan.normalized(index, shape)
        for device, index in sharding.devices_indices_map(shape).items()
    }
    return Replicas(grid, regions, tuple(sharding.shard_shape(shape)))


def _used(spec: Any) -> set[Any]:
    """The axes of the mesh by which something is divided."""
    parts = [part if isinstance(part, tuple) else (part,) for part in spec]
    return {name for part in parts for name in part}


def _ordinary(device: jax.Device) -> tuple[str | None, str]:
    return None, device.default_memory().kind
