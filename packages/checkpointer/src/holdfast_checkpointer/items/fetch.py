"""Reading what is wanted of an item, and making the leaves of the result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import place, plan
from holdfast_checkpointer.arrays.broadcast import Broadcast
from holdfast_checkpointer.arrays.buffers import aligned_empty
from holdfast_checkpointer.arrays.casting import is_narrowing, overflow_problem
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArrayRequest, ArraySource, Parts
from holdfast_checkpointer.bursts import uncollected
from holdfast_checkpointer.errors import TreeMismatchError
from holdfast_checkpointer.items.placing import (
    Places,
    Placing,
    key_data_shape,
    saved_shape,
    stored_dtype,
    wanted_shape,
    x64_as,
)
from holdfast_checkpointer.items.stored import StoredItem
from holdfast_checkpointer.items.values import as_python, inline
from holdfast_checkpointer.trees.match import Want, dtype_problem, shape_problem
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import dtype_name

_INLINE = ("int", "float", "bool", "complex", "str", "bytes", "np.generic")


async def fetch(
    item: StoredItem,
    wants: Sequence[Want],
    placing: Placing,
    options: ArrayLoadOptions,
    broadcast: Broadcast | None = None,
) -> list[Any]:
    """Makes the leaves that are wanted, in order.

    Raises:
        DamagedCheckpointError: Bytes differ from what was saved; names the leaf.
        PlacementError: A dtype or place is not to be had here.
        TreeMismatchError: An array of Orbax's turns out not to fit the target, or an integer
            not the dtype that is asked for.
    """
    reader = item.reader(options)
    stored = [want for want in wants if _is_stored(want)]
    if not item.ours:
        stored = await _with_shapes(reader, stored, unsafe=placing.unsafe)
    places = Places(placing)
    with uncollected():
        placements = [places.of(want) for want in stored]
        requests = [
            _request(item, want, placement)
            for want, placement in zip(stored, placements, strict=True)
        ]
        inlined = [
            _inline(want, places, placing) if not _is_stored(want) else None for want in wants
        ]
    places.report()
    if broadcast is None:
        read = await reader.read(requests)
    else:  # what is padded or cut is not of one shape everywhere
        shardings = [
            None if _is_resized(want) else placement.sharding
            for want, placement in zip(stored, placements, strict=True)
        ]
        read = await broadcast.read(reader, requests, shardings)
    with uncollected(), x64_as(placing.x64):
        if not placing.unsafe:
            _check_narrowed(stored, placements, read)
        parts = [
            _resized(want, placement, found) if _is_resized(want) else found
            for want, placement, found in zip(stored, placements, read, strict=True)
        ]
        shapes = [wanted_shape(want) for want in stored]
        arrays = iter(
            [
                _finish(want, array)
                for want, array in zip(stored, place.place(parts, placements, shapes), strict=True)
            ]
        )
    return [
        next(arrays) if _is_stored(want) else made
        for want, made in zip(wants, inlined, strict=True)
    ]


def _is_stored(want: Want) -> bool:
    return want.spec is not None and (want.spec.kind not in _INLINE or want.spec.value is None)


def _inline(want: Want, places: Places, placing: Placing) -> Any:
    if want.form == "skip":
        return want.skipped
    return None if want.spec is None else inline(want, places, placing)


async def _with_shapes(reader: ArraySource, wants: Sequence[Want], *, unsafe: bool) -> list[Want]:
    """Fills in what only Orbax's arrays themselves say, and compares it with the target."""
    found, problems = [], []
    names = [(str(want.spec.name), show(want.path)) for want in wants if want.spec is not None]
    told = await reader.describe_all(names)
    for want, array in zip(wants, told, strict=True):
        assert want.spec is not None
        shape = array.shape
        if want.spec.kind == "prng_key":
            shape = shape[: len(shape) - len(key_data_shape(str(want.spec.key_impl)))]
        spec = dataclasses.replace(want.spec, shape=shape, dtype=dtype_name(array.dtype))
        want = dataclasses.replace(want, spec=spec)
        problem = shape_problem(shape, want)
        if want.form == "python" and shape != ():
            problem = f"the target wants {want.python}, the checkpoint has an array {list(shape)}"
        if problem is None and want.dtype is not None and spec.kind != "prng_key":
            problem = dtype_problem(array.dtype, want.dtype, unsafe=unsafe)
        if problem:
            problems.append(f"{show(want.path)}: {problem}")
        found.append(want)
    if problems:
        raise TreeMismatchError(problems)
    return found


def _request(item: StoredItem, want: Want, placement: place.Placement) -> ArrayRequest:
    spec = want.spec
    assert spec is not None
    shape = saved_shape(want)
    regions = (
        place.regions_for(placement.sharding, wanted_shape(want)) if placement.sharding else None
    )
    if _is_resized(want):
        regions = [plan.clipped(region, shape) for region in _regions(want, placement)]
    digests = item.digests.get(str(spec.name))
    return ArrayRequest(
        name=str(spec.name),
        leaf=show(want.path),
        shape=shape,
        dtype=dtype_name(stored_dtype(spec)),
        storage_dtype=spec.storage_dtype,
        chunk_shape=digests.chunk_shape if digests else None,
        digests=digests.digests if digests else None,
        regions=regions,
        writable=placement.sharding is None,
    )


def _is_resized(want: Want) -> bool:
    return want.resize and wanted_shape(want) != saved_shape(want)


def _regions(want: Want, placement: place.Placement) -> list[plan.Region]:
    """The parts that are wanted, in the shape that is wanted."""
    shape = wanted_shape(want)
    found = place.regions_for(placement.sharding, shape) if placement.sharding else None
    return [plan.whole(shape)] if found is None else found


def _resized(want: Want, placement: place.Placement, read: Parts) -> Parts:
    """Each part in the shape that is wanted: zeros where nothing was saved."""
    return [
        _padded(part, plan.extent(region))
        for part, region in zip(read, _regions(want, placement), strict=True)
    ]


def _padded(part: np.ndarray[Any, Any], shape: plan.Shape) -> np.ndarray[Any, Any]:
    if part.shape == shape:
        return part
    padded = aligned_empty(shape, part.dtype)
    padded[...] = np.zeros((), part.dtype)
    padded[tuple(slice(0, size) for size in part.shape)] = part
    return padded


def _check_narrowed(
    wants: Sequence[Want], placements: Sequence[place.Placement], read: Sequence[Parts]
) -> None:
    """Refuses integers that would come out as others: a smaller dtype is asked for, not those."""
    problems = []
    for want, placement, parts in zip(wants, placements, read, strict=True):
        if not parts or not is_narrowing(parts[0].dtype, placement.dtype):
            continue
        found = (overflow_problem(part, placement.dtype) for part in parts)
        problem = next((problem for problem in found if problem), None)
        if problem:
            problems.append(f"{show(want.path)} {problem}; cast='unsafe' would wrap it")
    if problems:
        raise TreeMismatchError(problems)


def _finish(want: Want, array: Any) -> Any:
    spec = want.spec
    assert spec is not None
    if spec.kind == "prng_key":
        return jax.random.wrap_key_data(array, impl=str(spec.key_impl))
    if want.form == "python" or (want.form == "saved" and spec.kind == "scalar"):
        if array.shape != ():
            raise TreeMismatchError(
                [f"{show(want.path)}: an array {list(array.shape)} is no scalar"]
            )
        return as_python(array, want, unsafe=True) if want.form == "python" else array.item()
    return array[()] if want.form == "generic" else array
