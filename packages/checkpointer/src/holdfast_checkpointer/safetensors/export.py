"""Exporting a checkpoint, or a tree in memory, as safetensors files."""

from __future__ import annotations

import functools
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import AUTO, check_final
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import place_of
from holdfast_checkpointer.engine.together import by_primary
from holdfast_checkpointer.items.stored import StoredItem, open_item
from holdfast_checkpointer.safetensors.collect import (
    Collected,
    Naming,
    collect_item,
    collect_tree,
)
from holdfast_checkpointer.safetensors.files import INDEX_SUFFIX, SUFFIX, Found
from holdfast_checkpointer.safetensors.load import read_by_layout, with_tensors
from holdfast_checkpointer.safetensors.write import plan_shards, write_file, write_folder
from holdfast_checkpointer.trees.select import Selection
from holdfast_metadata import require_json
from holdfast_storage import StorageBackend

Path = str | PathLike[str]


def export_safetensors(
    source: Any,
    path: Path,
    *,
    max_shard_bytes: int = 2 << 30,
    metadata: Mapping[str, str] | None = None,
    non_tensors: str = "refuse",
    select: str | Sequence[str] | None = None,
    rename: Any = None,
    overwrite: bool = False,
    checkpointable_name: str = AUTO,
    context: options.Context | None = None,
) -> None:
    """Writes a checkpoint's arrays, or those of a tree, as safetensors files for serving.

    A leaf becomes the tensor whose name is the keys on the way to it, joined by
    `SafetensorsOptions.separator`. None and empty containers have no tensors. A stored
    checkpoint is read piece by piece, every byte of it verified, and needs no devices; one
    shard is in memory at a time. Readers see the whole set or none: a shard alone is nothing
    before the index, which is written last and in one piece. In a job of several processes the
    primary writes; the others may call this, too, and then wait. Of a tree in memory the primary
    needs each array whole.

    Args:
        source: A path or URL of a checkpoint (or of safetensors files), or a PyTree.
        path: A folder, which gets `model.safetensors`, or shards and their index, beside what
            else is in it; or a file `*.safetensors`, if everything fits into one shard.
        max_shard_bytes: A file has at most about so many bytes of tensors. A larger tensor
            has a file of its own.
        metadata: Texts for `__metadata__` of every file. Some readers want
            `{"format": "pt"}` there.
        non_tensors: "refuse" numbers and texts among the leaves, or write them into "metadata"
            (numbers as JSON) under the name that their tensor would have.
        select: Of a stored checkpoint: globs over the key paths to write, as in `load`.
        rename: Likewise: new key paths, as in `load`.
        overwrite: Replace safetensors files that are there, by one put; what they were is
            removed after it. Never replaces a checkpoint.
        checkpointable_name: The item of the checkpoint; "AUTO" as in `load`.
        context: Options of this call.

    Raises:
        FileExistsError: `DestinationOccupiedError`; nothing was touched.
        FileNotFoundError: No checkpoint is at `source`.
        ValueError: `UnsupportedLeafError` lists every leaf that can be no tensor, and names
            that two leaves would share; an argument cannot be used; or the source is damaged
            (`DamagedCheckpointError`). Nothing is visible at `path`.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save("memory://doc/trained", {"params": {"w": np.ones(2)}, "step": 7})
        >>> hf.export_safetensors(
        ...     "memory://doc/trained", "memory://doc/served", select="params/**", overwrite=True
        ... )
        >>> hf.load("memory://doc/served")
        {'params.w': array([1., 1.])}
    """
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    check_final(final)
    target = _Target(backend, final, max_shard_bytes, overwrite)
    naming = _naming(chosen, metadata, non_tensors)
    selection = Selection.of(select, rename)
    if isinstance(source, str | PathLike):
        _refuse_overlap(source, target, chosen)
        work = functools.partial(
            _from_path, source, checkpointable_name, selection, naming, target, chosen
        )
    else:
        if selection is not None or checkpointable_name != AUTO:
            raise ValueError(
                "select=, rename= and checkpointable_name= are for a stored checkpoint; of a tree "
                "in memory pass the part to write"
            )
        work = functools.partial(target.write, collect_tree(source, naming))
    AsyncResponse(
        by_primary(chosen, "export", place_of(backend, final), work),
        what=f"the export to {path}",
        deadline=chosen.asynchronous.timeout_secs,
    ).result()


def _naming(context: options.Context, metadata: Any, non_tensors: str) -> Naming:
    if non_tensors not in ("refuse", "metadata"):
        raise ValueError(f"non_tensors must be 'refuse' or 'metadata', got {non_tensors!r}")
    texts = {} if metadata is None else metadata
    if not isinstance(texts, Mapping):
        raise ValueError(f"metadata must be a dict of texts, got {type(metadata).__name__}")
    for key, value in texts.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata holds texts; {key!r}: {value!r:.60} is none")
    require_json(texts, what="metadata")
    return Naming(context.safetensors.separator, non_tensors == "metadata", dict(texts))


@dataclass(frozen=True)
class _Target:
    """Where files go, and how large they may be."""

    backend: StorageBackend
    final: str
    max_bytes: int
    overwrite: bool

    def __post_init__(self) -> None:
        size: Any = self.max_bytes
        if not isinstance(size, int) or size < 1:
            raise ValueError(
                f"max_shard_bytes must be a number of bytes, at least 1, got {self.max_bytes!r}"
            )
        if self.final.endswith(INDEX_SUFFIX):
            raise ValueError(f"{self.final!r} names an index: give its folder")

    async def write(self, collected: Collected) -> None:
        """Writes one file or a folder of them."""
        shards = plan_shards(collected.tensors, collected.texts, max_bytes=self.max_bytes)
        if not self.final.endswith(SUFFIX):
            await write_folder(
                self.backend, self.final, collected, shards, overwrite=self.overwrite
            )
            return
        if len(shards) > 1:
            raise ValueError(
                f"the tensors take {len(shards)} files of max_shard_bytes={self.max_bytes} (and "
                "headers as large as the format allows), and path names one file: give a folder, "
                "or allow more"
            )
        await write_file(self.backend, self.final, collected, shards[0], overwrite=self.overwrite)


def _refuse_overlap(source: Path, target: _Target, context: options.Context) -> None:
    backend, final = context.locate(source)
    here, there = f"{backend.root}/{final}/", f"{target.backend.root}/{target.final}/"
    if here.startswith(there) or there.startswith(here):
        raise ValueError(f"the export of {here[:-1]} to {there[:-1]}: one lies in the other")


def _from_path(
    source: Path,
    name: str,
    selection: Selection | None,
    naming: Naming,
    target: _Target,
    context: options.Context,
) -> Coroutine[Any, Any, None]:
    """The export of what is at a path."""
    backend, final = context.locate(source)

    async def export(item: StoredItem) -> None:
        root = item.tree.root if selection is None else selection.apply(item.tree.root)
        await target.write(await collect_item(item, root, naming, context.array_loading))

    async def checkpoint(stored: StoredCheckpoint) -> None:
        await export(await open_item(stored.item_area(await stored.find_tree(name))))

    async def tensors(found: Found) -> None:
        await with_tensors(found, name, context, export)

    return read_by_layout(backend, final, context, checkpoint, tensors)
