"""How an array store is laid out: TensorStore specs, zarr metadata, and key names."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from holdfast_checkpointer.arrays.plan import Shape
from holdfast_metadata import dtype_name
from holdfast_storage import KvTarget

_INDEX_CACHE = "cache_pool#index"

# What Orbax writes too: small values lie in the index itself, and an index node is large
# enough for all leaves of a model.
_OCDBT_CONFIG = {
    "max_inline_value_bytes": 1024,
    "max_decoded_node_bytes": 100_000_000,
    "compression": None,
}


@dataclass(frozen=True)
class ArrayFormat:
    """Which of the four layouts that holdfast reads an item has; it writes the first.

    Attributes:
        ocdbt: One database for all arrays; else a folder per array.
        zarr: Version 3 or 2.
        zeros_left_out: Whether a chunk that is not there holds zeros, as in checkpoints of older
            Orbax; else it is missing.
    """

    ocdbt: bool = True
    zarr: int = 3
    zeros_left_out: bool = False


def context_for(target: KvTarget) -> ts.Context:
    """A TensorStore context for one operation; it goes, with its caches, when that ends.

    All arrays that are opened under it share what was read of the database's index.
    """
    index = {_INDEX_CACHE: {"total_bytes_limit": 100_000_000}}
    if target.shared is not None:
        return ts.Context(index, target.shared)
    return ts.Context({"cache_pool": {"total_bytes_limit": 0}, **index, **target.context})


def database_spec(
    target: KvTarget, *, write: bool, file_bytes: int | None = None
) -> dict[str, Any]:
    """The OCDBT database that lies at the target.

    Args:
        target: Where.
        write: Whether to write one; else to read it.
        file_bytes: About how large a data file becomes, 0 for any size; None takes what
            suits the storage.
    """
    spec: dict[str, Any] = {"driver": "ocdbt", "base": dict(target.spec)}
    if write:
        spec["config"] = _OCDBT_CONFIG
        size = target.hints.target_file_bytes if file_bytes is None else file_bytes
        spec["target_data_file_size"] = size
    else:
        spec["cache_pool"] = _INDEX_CACHE
        spec["experimental_read_coalescing_threshold_bytes"] = target.hints.coalesce_bytes
        spec["experimental_read_coalescing_merged_bytes"] = 64 << 20
    return spec


def array_spec(target: KvTarget, name: str, layout: ArrayFormat) -> dict[str, Any]:
    """An existing array for reading. Missing chunks are errors unless zeros are left out."""
    if layout.ocdbt:
        store = {**database_spec(target, write=False), "path": f"{name}/" if name else ""}
    else:
        path = target.spec["path"]
        store = {**target.spec, "path": f"{path}{name}/" if name else path}
    return {
        "driver": "zarr3" if layout.zarr == 3 else "zarr",
        "kvstore": store,
        "open": True,
        "fill_missing_data_reads": layout.zeros_left_out,
        "recheck_cached_data": False,
        "recheck_cached_metadata": False,
    }


def new_array_spec(database: dict[str, Any], name: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """An array to be created inside a database. Chunks of zeros are written as well."""
    return {
        "driver": "zarr3",
        "kvstore": {**database, "path": f"{name}/" if name else ""},
        "metadata": metadata,
        "create": True,
        "open": False,
        "store_data_equal_to_fill_value": True,
    }


def metadata_key(name: str) -> str:
    """The key of an array's `zarr.json`."""
    return f"{name}/zarr.json" if name else "zarr.json"


def chunk_key(name: str, index: Shape) -> str:
    """The key of a chunk."""
    return "/".join([*([name] if name else []), "c", *map(str, index)])


def zarr_metadata(
    shape: Shape, chunk: Shape, dtype: np.dtype[Any], compression: str | None
) -> dict[str, Any]:
    """The content of `zarr.json`.

    Raises:
        ValueError: zarr3 does not know the dtype.
    """
    found = dict(_template(dtype_name(dtype), compression))
    found["shape"] = list(shape)
    found["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": list(chunk)}}
    return found


@functools.lru_cache(maxsize=1024)
def encoded_metadata(shape: Shape, chunk: Shape, dtype: str) -> bytes:
    """The bytes of an uncompressed array's `zarr.json`; many arrays share them."""
    found = zarr_metadata(shape, chunk, np.dtype(_numpy(dtype)), None)
    return json.dumps(found).encode("ascii")


@functools.cache
def _template(dtype: str, compression: str | None) -> dict[str, Any]:
    """What TensorStore itself writes for an array of this dtype."""
    wide = np.dtype(_numpy(dtype)).itemsize > 1
    codecs: list[dict[str, Any]] = [{"name": "bytes"}]
    if wide:
        codecs[0]["configuration"] = {"endian": "little"}
    if compression == "zstd":
        codecs.append({"name": "zstd", "configuration": {"level": 3}})
    store = ts.KvStore.open({"driver": "memory"}).result()
    ts.open(
        {
            "driver": "zarr3",
            "kvstore": store.spec().to_json(),
            "metadata": {"shape": [1], "data_type": dtype, "codecs": codecs},
            "create": True,
        },
        context=(context := ts.Context()),
    ).result()
    written = ts.KvStore.open(store.spec().to_json(), context=context).result()
    found: dict[str, Any] = json.loads(bytes(written["zarr.json"]))
    return found


def _numpy(dtype: str) -> Any:
    from holdfast_metadata import dtype_from_name

    return dtype_from_name(dtype)


@functools.cache
def storage_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that an array has on disk: its own, or its bits where zarr3 does not know it."""
    return dtype if storable(dtype_name(dtype)) else np.dtype(f"uint{8 * dtype.itemsize}")


def storable(dtype: str) -> bool:
    """Whether zarr3 as TensorStore writes it knows a dtype."""
    try:
        _template(dtype, None)
    except (ValueError, NotImplementedError, TypeError):
        return False
    return True
