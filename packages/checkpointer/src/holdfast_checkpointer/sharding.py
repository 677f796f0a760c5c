"""Shardings as JSON, with Orbax's fields, and back onto the devices that are here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

_CPU = re.compile(r"TFRT_CPU_(\d+)")


def sharding_to_json(sharding: Any) -> dict[str, Any] | None:
    """Describes a sharding; None for a kind that Orbax has no words for."""
    if isinstance(sharding, NamedSharding):
        mesh = sharding.mesh
        return {
            "sharding_type": "NamedSharding",
            "shape": [int(size) for size in mesh.devices.shape],
            "axis_names": [str(name) for name in mesh.axis_names],
            "axis_types": [f"AxisType.{kind.name}" for kind in mesh.axis_types],
            "partition_spec": [_part(part) for part in sharding.spec],
            "device_mesh": {"mesh": _ids(mesh.devices)},
        }
    if isinstance(sharding, SingleDeviceSharding):
        (device,) = sharding.device_set
        return {"sharding_type": "SingleDeviceSharding", "device_str": str(device)}
    return None


def _part(part: Any) -> Any:
    if part is None or part is PartitionSpec.UNCONSTRAINED:
        return None
    return [str(name) for name in part] if isinstance(part, tuple) else str(part)


def _ids(devices: Any) -> Any:
    if isinstance(devices, np.ndarray):
        return [_ids(part) for part in devices]
    return {"id": int(devices.id)}


def sharding_from_json(
    stored: Mapping[str, Any] | None, devices: Sequence[jax.Device]
) -> jax.sharding.Sharding | None:
    """Rebuilds a sharding on the given devices; None if it does not fit them.

    A stored sharding is advice: it never makes a load fail.
    """
    if stored is None:
        return None
    try:
        match stored.get("sharding_type"):
            case "NamedSharding":
                return _named(stored, devices)
            case "SingleDeviceSharding":
                return _single(stored["device_str"], devices)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return None


def _named(stored: Mapping[str, Any], devices: Sequence[jax.Device]) -> NamedSharding | None:
    shape = tuple(stored["shape"])
    by_id = {device.id: device for device in devices}
    mesh = stored.get("device_mesh")
    if mesh is None:
        ids = [device.id for device in devices][: int(np.prod(shape))]
    else:
        ids = _flat_ids(mesh["mesh"])
    if len(ids) != int(np.prod(shape)) or not set(ids) <= by_id.keys():
        return None
    grid = np.empty(len(ids), dtype=object)
    grid[:] = [by_id[number] for number in ids]
    kinds = stored.get("axis_types")
    types = None
    if kinds is not None:
        types = tuple(AxisType[kind.rpartition(".")[2]] for kind in kinds)
    names = tuple(stored["axis_names"])
    parts = [tuple(p) if isinstance(p, list) else p for p in stored["partition_spec"]]
    spec = PartitionSpec(*parts)  # type: ignore[no-untyped-call]
    return NamedSharding(Mesh(grid.reshape(shape), names, axis_types=types), spec)


def _flat_ids(mesh: Any) -> list[int]:
    if isinstance(mesh, list):
        return [number for part in mesh for number in _flat_ids(part)]
    return [int(mesh["id"])]


def _single(name: str, devices: Sequence[jax.Device]) -> SingleDeviceSharding | None:
    wanted = _CPU.sub(r"cpu:\1", name)
    for device in devices:
        if _CPU.sub(r"cpu:\1", str(device)) == wanted:
            return SingleDeviceSharding(device)
    return None
