"""Every way in which Orbax writes a PyTree, by name."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp0
from orbax.checkpoint import v1 as ocp

# Documented, and not exported.
from orbax.checkpoint._src.metadata.pytree_metadata_options import PyTreeMetadataOptions

Writer = Callable[[Path, Any], None]
StorageOptions = ocp.options.ArrayOptions.Saving.StorageOptions


def v1(**saving: Any) -> Writer:
    """The v1 function under options of `ArrayOptions.Saving`."""

    def write(path: Path, tree: Any) -> None:
        context = ocp.Context()
        for name, value in saving.items():
            setattr(context.array.saving, name, value)
        with context:
            ocp.save(path, tree)

    return write


def v0(*, save_args: ocp0.SaveArgs | None = None, **handler: Any) -> Writer:
    """A v0 checkpointer: the item lies in the checkpoint itself."""

    def write(path: Path, tree: Any) -> None:
        per_leaf = None if save_args is None else jax.tree.map(lambda _: save_args, tree)
        args = ocp0.args.PyTreeSave(tree, save_args=per_leaf)
        with ocp0.Checkpointer(ocp0.PyTreeCheckpointHandler(**handler)) as checkpointer:
            checkpointer.save(path, args)

    return write


def standard(path: Path, tree: Any) -> None:
    with ocp0.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)


def composite(path: Path, tree: Any) -> None:
    args = ocp0.args.Composite(
        state=ocp0.args.PyTreeSave(tree), config=ocp0.args.JsonSave({"width": 3})
    )
    with ocp0.Checkpointer(ocp0.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args)


def checkpointables(path: Path, tree: Any) -> None:
    ocp.save_checkpointables(path, {"state": tree, "config": {"width": 3}})


def _by_axis(key: Any, leaf: Any) -> StorageOptions | None:
    """Small chunks along the last axis, where there is one."""
    if getattr(leaf, "ndim", 0) == 0 or not isinstance(leaf, jax.Array):
        return None
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return None
    return StorageOptions(chunk_byte_size=512, shard_axes=(leaf.ndim - 1,))


def _formats(make: Callable[..., Writer], label: str) -> dict[str, Writer]:
    """The eight combinations of container, format and compression."""
    found = {}
    for ocdbt, zarr3, compressed in itertools.product((True, False), repeat=3):
        words = ("ocdbt" if ocdbt else "files", "zarr3" if zarr3 else "zarr2")
        name = "-".join((label, *words, "zstd" if compressed else "raw"))
        found[name] = make(use_ocdbt=ocdbt, use_zarr3=zarr3, use_compression=compressed)
    return found


FORMATS = _formats(v1, "v1") | _formats(v0, "v0")
SPECIAL: dict[str, Writer] = {
    "v1-small chunks": v1(storage_options=StorageOptions(chunk_byte_size=1024)),
    "v1-small chunks in files": v1(
        use_ocdbt=False, use_zarr3=False, storage_options=StorageOptions(chunk_byte_size=1024)
    ),
    "v1-shard axes": v1(scoped_storage_options_creator=_by_axis),
    "v1-small data files": v1(ocdbt_target_data_file_size=4096),
    "v1-one replica writes": v1(use_replica_parallel=False),
    "v1-replica folder": v1(
        use_replica_parallel=True, enable_replica_parallel_separate_folder=True
    ),
    "v1-checkpointables": checkpointables,
    "v0-small chunks": v0(save_args=ocp0.SaveArgs(chunk_byte_size=1024)),
    "v0-rich types": v0(pytree_metadata_options=PyTreeMetadataOptions(support_rich_types=True)),
    "v0-standard": standard,
    "v0-composite": composite,
}
WRITERS = FORMATS | SPECIAL
