"""From host memory to devices, in the caller's terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format

from holdfast_checkpointer.arrays import plan
from holdfast_checkpointer.arrays.casting import convert


@dataclass(frozen=True)
class Placement:
    """Where an array goes.

    Attributes:
        sharding: The sharding to make; None leaves it on the host as NumPy.
        dtype: The dtype to make.
        weak_type: JAX's flag to restore.
        layout: JAX's device-local layout; None for the device's own.
    """

    sharding: jax.sharding.Sharding | None
    dtype: np.dtype[Any]
    weak_type: bool = False
    layout: Any = None


def regions_for(sharding: jax.sharding.Sharding, shape: plan.Shape) -> list[plan.Region] | None:
    """The distinct parts that this process's devices need; None for the whole array.

    There are none where only other processes have devices of the sharding.
    """
    if not sharding.addressable_devices:
        return []
    if sharding.is_fully_replicated:
        return None
    found = {}
    for index in sharding.addressable_devices_indices_map(shape).values():
        region = plan.normalized(index if index is not None else (), shape)
        found[tuple((part.start, part.stop) for part in region)] = region
    return [found[key] for key in sorted(found)]


def place(
    read: Sequence[list[np.ndarray[Any, Any]]],
    placements: Sequence[Placement],
    shapes: Sequence[plan.Shape],
) -> list[Any]:
    """Makes the arrays: NumPy as read, JAX arrays where they are wanted."""
    results: list[Any] = [None] * len(read)
    for i, (parts, placement) in enumerate(zip(read, placements, strict=True)):
        parts = [convert(part, placement.dtype) for part in parts]
        if placement.sharding is None:
            results[i] = parts[0]
        elif not placement.sharding.addressable_devices:
            results[i] = jax.make_array_from_single_device_arrays(
                shapes[i], placement.sharding, [], dtype=placement.dtype
            )
        elif placement.sharding.is_fully_replicated:
            results[i] = _whole(parts[0], placement.sharding)
        else:
            results[i] = _from_parts(parts, placement.sharding, shapes[i])
    for i, placement in enumerate(placements):
        if placement.weak_type and placement.sharding is not None:
            results[i] = _weaken(results[i])
        if placement.layout is not None:
            results[i] = jax.device_put(results[i], Format(placement.layout, placement.sharding))
    return results


def _whole(array: np.ndarray[Any, Any], sharding: jax.sharding.Sharding) -> jax.Array:
    """The array on every device of a sharding.

    Measured on 5,000 small arrays: a third of the time of one batched `device_put`.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda _index: array)


def _from_parts(
    parts: list[np.ndarray[Any, Any]], sharding: jax.sharding.Sharding, shape: plan.Shape
) -> jax.Array:
    regions = regions_for(sharding, shape) or []
    by_region = {
        tuple((p.start, p.stop) for p in region): part
        for region, part in zip(regions, parts, strict=True)
    }

    def piece(index: Any) -> np.ndarray[Any, Any]:
        region = plan.normalized(index, shape)
        return by_region[tuple((p.start, p.stop) for p in region)]

    devices = sharding.addressable_devices_indices_map(shape)
    places = [_on(device, sharding.memory_kind) for device in devices]
    arrays = jax.device_put([piece(index) for index in devices.values()], places)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _on(device: jax.Device, memory_kind: str | None) -> Any:
    """A device, or a memory of its that is not the default one, such as pinned host memory."""
    if memory_kind is None or memory_kind == device.default_memory().kind:
        return device
    return jax.sharding.SingleDeviceSharding(device, memory_kind=memory_kind)


def _weaken(array: jax.Array) -> jax.Array:
    """Restores a weak type, which JAX gives to what comes from a Python number.

    Where JAX would choose another dtype for the number, or there are many of them, the
    array stays strong, with the same values.
    """
    if array.ndim or not array.is_fully_addressable:
        return array
    weak = jax.numpy.asarray(array.item())
    return jax.device_put(weak, array.sharding) if weak.dtype == array.dtype else array
