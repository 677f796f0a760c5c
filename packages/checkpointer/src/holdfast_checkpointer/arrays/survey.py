"""What the arrays of an item say of themselves, all at once.

Orbax's documents hold no shapes: the arrays' own metadata has them. Opened one by one, a
model of ten thousand arrays would cost ten thousand requests; in a database they lie in the
index, so one batch reads them all in as many requests as one array needs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from holdfast_checkpointer.arrays import failures, formats, plan
from holdfast_checkpointer.arrays.formats import ArrayFormat
from holdfast_checkpointer.bursts import uncollected
from holdfast_metadata import dtype_from_name
from holdfast_storage import KvTarget
from holdfast_storage.errors import DamagedCheckpointError

_ANY_AGE = 0.0  # as a time: whatever is cached


@dataclass(frozen=True)
class StoredShape:
    """What an array says of itself."""

    shape: plan.Shape
    dtype: np.dtype[Any]
    chunk_shape: plan.Shape


async def survey(
    target: KvTarget, layout: ArrayFormat, names: Sequence[tuple[str, str]], *, label: str = ""
) -> list[StoredShape]:
    """Shape, dtype and chunks of many arrays, in order; no array is read.

    Args:
        target: Where the item's arrays are.
        layout: How they are laid out.
        names: Parameter name of each, and what to call its leaf in messages.
        label: For messages.

    Raises:
        DamagedCheckpointError: The metadata of one is missing or is none; names the leaf.
    """
    if not names:
        return []
    context = formats.context_for(target)
    spec = formats.database_spec(target, write=False) if layout.ocdbt else dict(target.spec)
    with failures.reading(names[0][1], label, target):
        store = await ts.KvStore.open(spec, context=context)
        # The first read fetches the database's manifest. The others take it as it then is: a
        # database that is committed does not change, and each would ask again.
        if layout.ocdbt:
            await store.read(_key(names[0][0], layout))
        batch = ts.Batch()
        futures = [
            store.read(_key(name, layout), batch=batch, staleness_bound=_ANY_AGE)
            for name, _ in names
        ]
        batch.submit()
    return await asyncio.to_thread(_decode_all, target, layout, names, futures, label)


@uncollected()
def _decode_all(
    target: KvTarget,
    layout: ArrayFormat,
    names: Sequence[tuple[str, str]],
    futures: Sequence[Any],
    label: str,
) -> list[StoredShape]:
    """In a thread: awaited one by one, each would cost a turn of the loop."""
    decode = _of_zarr3 if layout.zarr == 3 else _of_zarr2
    found = []
    for (name, leaf), future in zip(names, futures, strict=True):
        with failures.reading(leaf, label, target):
            result = future.result()
        why = "its metadata is missing"
        if result.state != "missing":
            try:
                found.append(decode(json.loads(result.value)))
                continue
            except (ValueError, TypeError, KeyError, IndexError) as error:
                why = f"its metadata cannot be read: {type(error).__name__}: {error}"
        raise DamagedCheckpointError(
            f"the array of leaf {leaf!r} is damaged: {why}", leaf=leaf, file=name, root=label
        )
    return found


def _key(name: str, layout: ArrayFormat) -> str:
    if layout.zarr == 3:
        return formats.metadata_key(name)
    return f"{name}/.zarray" if name else ".zarray"


def _of_zarr3(found: dict[str, Any]) -> StoredShape:
    chunk = found["chunk_grid"]["configuration"]["chunk_shape"]
    for codec in found["codecs"]:
        if codec["name"] == "sharding_indexed":  # what is read at once is smaller then
            chunk = codec["configuration"]["chunk_shape"]
    return _stored(found["shape"], dtype_from_name(found["data_type"]), chunk)


def _of_zarr2(found: dict[str, Any]) -> StoredShape:
    named = found["dtype"]
    numpy = named[0] in "<>|"
    dtype = np.dtype(named).newbyteorder("=") if numpy else dtype_from_name(named)
    return _stored(found["shape"], dtype, found["chunks"])


def _stored(shape: Sequence[Any], dtype: np.dtype[Any], chunk: Sequence[Any]) -> StoredShape:
    return StoredShape(tuple(map(int, shape)), dtype, tuple(max(1, int(size)) for size in chunk))
