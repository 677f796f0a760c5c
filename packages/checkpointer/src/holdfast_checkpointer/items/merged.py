"""One PyTree item of several that have no leaf in common, without reading an array."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_checkpointer.arrays.merge import merge_databases
from holdfast_checkpointer.arrays.write import ArrayRecord
from holdfast_checkpointer.bursts import uncollected
from holdfast_checkpointer.items.describe import (
    DescribedTree,
    documents,
    encode_documents,
    put_documents,
)
from holdfast_checkpointer.items.stored import StoredItem
from holdfast_checkpointer.trees.joining import join, shape_of
from holdfast_checkpointer.trees.leaves import Leaf
from holdfast_checkpointer.trees.names import parameter_names
from holdfast_metadata import ArrayDigests, LeafSpec, MetadataError, Node
from holdfast_metadata.tree import iterate_leaves
from holdfast_storage import WriteArea


@dataclass(frozen=True)
class ItemPart:
    """One part of an item.

    Attributes:
        stored: What was saved.
        folder: Where its database lies below the merged item; None if it has none.
    """

    stored: StoredItem
    folder: str | None


async def merge_items(area: WriteArea, parts: Sequence[ItemPart]) -> None:
    """Writes the documents and the index of an item whose parts' databases lie below it.

    Chunks and their digests are those of the parts.

    Raises:
        MetadataError: Parts have leaves in common, or a database is missing.
    """
    root: Node = parts[0].stored.tree.root
    for part in parts[1:]:
        root, problems = join(root, part.stored.tree.root)
        if problems:
            raise MetadataError(f"parts that were saved do not go together: {problems[0]}")
    files, renamed = await asyncio.to_thread(_describe, root, parts)
    sources = []
    for part, names in zip(parts, renamed, strict=True):
        if names:
            if part.folder is None:
                raise MetadataError(f"{part.stored.area.label} has no arrays, but a tree of them")
            sources.append((area.kv_target(part.folder), names))
    if sources:
        await merge_databases(area.kv_target(), sources, label=area.label)
    await put_documents(area, files)


@uncollected()
def _describe(
    root: Node, parts: Sequence[ItemPart]
) -> tuple[dict[str, bytes], list[dict[str, str]]]:
    """The documents, and for each part the old and new names of its arrays."""
    from_part = {
        path: (number, spec)
        for number, part in enumerate(parts)
        for path, spec in iterate_leaves(part.stored.tree.root)
    }
    paths = tuple(path for path, _ in iterate_leaves(root))
    names, name_reason = parameter_names(paths)
    renamed: list[dict[str, str]] = [{} for _ in parts]
    records, leaves = [], []
    for path, name in zip(paths, names, strict=True):
        number, spec = from_part[path]
        leaves.append(Leaf(spec))
        digests = parts[number].stored.digests.get(str(spec.name))
        if digests is not None:
            renamed[number][str(spec.name)] = name
            records.append(_record(name, spec, digests))
    reasons = [part.stored.tree.orbax_unreadable for part in parts if _has_leaves(part)]
    described = DescribedTree(
        shape_of(root),
        paths,
        tuple(leaves),
        tuple(names),
        next((reason for reason in (*reasons, name_reason) if reason), None),
    )
    handler = str(parts[0].stored.tree.handler)
    return encode_documents(documents(described, records, handler)), renamed


def _has_leaves(part: ItemPart) -> bool:
    return next(iterate_leaves(part.stored.tree.root), None) is not None


def _record(name: str, spec: LeafSpec, digests: ArrayDigests) -> ArrayRecord:
    stored_otherwise = spec.storage_dtype is not None and spec.dtype is not None
    return ArrayRecord(
        name=name,
        shape=digests.shape,
        dtype=str(spec.dtype) if stored_otherwise else digests.dtype,
        storage_dtype=digests.dtype,
        chunk_shape=digests.chunk_shape,
        write_shape=spec.write_shape if spec.write_shape is not None else digests.shape,
        digests=digests.digests,
    )
