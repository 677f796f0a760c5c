"""From a caller's tree to the item's documents."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.arrays.snapshot import StorageRule
from holdfast_checkpointer.arrays.write import ArrayRecord
from holdfast_checkpointer.errors import UnsupportedLeafError
from holdfast_checkpointer.items.storing import StorageRequest, apply
from holdfast_checkpointer.trees.leaves import CannotBeSaved, Leaf, classify
from holdfast_checkpointer.trees.names import parameter_names
from holdfast_checkpointer.trees.paths import show, text
from holdfast_checkpointer.trees.structure import Path, Shape, take_apart
from holdfast_metadata import (
    DIGESTS_DIR,
    TREE_FILE,
    ArrayDigests,
    ChunkDigests,
    CustomNode,
    DictNode,
    Key,
    LeafNode,
    LeafSpec,
    MetadataError,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
    TreeDocument,
    decode_scalar,
)
from holdfast_metadata.orbax import (
    ARRAY_METADATA_DIR,
    ITEM_METADATA_FILE,
    SHARDING_FILE,
    STRINGS_FILE,
    ArrayMetadataEntry,
    ArrayMetadataFile,
    ItemEntry,
    ItemMetadata,
    ShardingFile,
    StringsFile,
)
from holdfast_metadata.orbax.item import DICT_KEY, SEQUENCE_KEY
from holdfast_metadata.tree import Step, iterate_leaves
from holdfast_storage import WriteArea

_VALUE_TYPES = {"jax.Array": "jax.Array", "prng_key": "jax.Array", "np.ndarray": "np.ndarray"}
_VALUE_TYPES |= dict.fromkeys(("int", "float", "bool", "np.generic", "scalar"), "scalar")
_VALUE_TYPES |= {"complex": "np.ndarray", "str": "string"}
_EMPTY_TYPES = {"dict": "Dict", "list": "List", "tuple": "Tuple"}


@dataclass(frozen=True)
class DescribedTree:
    """A tree that can be saved, with names given.

    Attributes:
        shape: Its nodes.
        paths: Of its leaves, in order.
        leaves: What each leaf is.
        names: Their parameter names.
        orbax_reason: Why Orbax cannot read the item; None if it can.
        rules: How each leaf is stored; None if all are as they are.
    """

    shape: Shape
    paths: tuple[Path, ...]
    leaves: tuple[Leaf, ...]
    names: tuple[str, ...]
    orbax_reason: str | None
    rules: tuple[StorageRule, ...] | None = None

    @property
    def root(self) -> Node:
        """The tree, its leaves without what writing finds out."""
        return _node(self.shape, iter([leaf.spec for leaf in self.leaves]))

    def arrays(self) -> list[tuple[str, Any]]:
        """What goes into the array store, by name."""
        return [
            (name, leaf.array)
            for name, leaf in zip(self.names, self.leaves, strict=True)
            if leaf.array is not None
        ]

    def array_rules(self) -> list[StorageRule] | None:
        """How each of `arrays` is stored; None if all are as they are."""
        if self.rules is None:
            return None
        return [
            rule
            for rule, leaf in zip(self.rules, self.leaves, strict=True)
            if leaf.array is not None
        ]


def describe(tree: Any, storage: StorageRequest | None = None) -> DescribedTree:
    """Takes a tree apart and finds out what each leaf is. No I/O, no copies.

    Args:
        tree: The caller's.
        storage: How to store its leaves; None for as they are.

    Raises:
        UnsupportedLeafError: Lists every leaf that cannot be saved, with its path and type.
        StorageOptionsError: Lists every leaf that cannot be stored as asked.
    """
    shape, found = take_apart(tree)
    leaves, problems, reasons = [], [], []
    for path, value in found:
        try:
            leaf = classify(value)
        except CannotBeSaved as error:
            problems.append(f"{show(path)}: {error}")
            continue
        leaves.append(leaf)
        if leaf.orbax_reason:
            reasons.append(f"{show(path)}: {leaf.orbax_reason}")
    if problems:
        raise UnsupportedLeafError(problems)
    paths = tuple(path for path, _ in found)
    rules = None
    if storage is not None and not storage.says_nothing:
        leaves, rules = apply(storage, tree, paths, leaves)
    names, name_reason = parameter_names(paths)
    if name_reason:
        reasons.append(name_reason)
    if not leaves and shape.kind in ("none", "dict", "list", "tuple", "namedtuple"):
        reasons.append("a tree without leaves")
    return DescribedTree(
        shape,
        paths,
        tuple(leaves),
        tuple(names),
        reasons[0] if reasons else None,
        None if rules is None else tuple(rules),
    )


@dataclass(frozen=True)
class ItemDocuments:
    """Everything that describes one item, ready to be encoded."""

    tree: TreeDocument
    digests: ChunkDigests
    metadata: ItemMetadata
    shardings: ShardingFile
    array_metadata: ArrayMetadataFile
    strings: StringsFile | None


def documents(
    described: DescribedTree,
    records: Sequence[ArrayRecord],
    handler: str,
    custom_metadata: Any = None,
) -> ItemDocuments:
    """The item's documents, once its arrays are written."""
    by_name = {record.name: record for record in records}
    specs = [
        _complete(leaf.spec, name, by_name)
        for name, leaf in zip(described.names, described.leaves, strict=True)
    ]
    strings, string_reason = _strings(specs, described)
    reason = described.orbax_reason or string_reason or _dtype_reason(specs)
    nodes = iter(specs)
    tree = TreeDocument(_node(described.shape, nodes), handler, reason)
    arrays = [spec for spec in specs if spec.kind in ("jax.Array", "prng_key")]
    return ItemDocuments(
        tree=tree,
        digests=_digests(records),
        metadata=ItemMetadata(tuple(_entries(described, specs)), custom_metadata=custom_metadata),
        shardings=ShardingFile({str(s.name): s.sharding for s in arrays if s.sharding}),
        array_metadata=ArrayMetadataFile(tuple(_array_entry(spec, by_name) for spec in arrays)),
        strings=strings,
    )


PROCESS = "process_0"


def encode_documents(found: ItemDocuments) -> dict[str, bytes]:
    """The files of an item's documents, by path within the item."""
    files = {
        TREE_FILE: found.tree.to_bytes(),
        f"{DIGESTS_DIR}/{PROCESS}": found.digests.to_bytes(),
        ITEM_METADATA_FILE: found.metadata.to_bytes(),
    }
    if found.array_metadata.entries:
        files[SHARDING_FILE] = found.shardings.to_bytes()
        files[f"{ARRAY_METADATA_DIR}/{PROCESS}"] = found.array_metadata.to_bytes()
    if found.strings is not None:
        files[STRINGS_FILE] = found.strings.to_bytes()
    return files


async def put_documents(area: WriteArea, files: Mapping[str, bytes]) -> None:
    """Stores the files that `encode_documents` made."""
    for name, data in files.items():
        folder, _, file = name.rpartition("/")
        await (area.child(folder) if folder else area).put(file, data)


def _complete(spec: LeafSpec, name: str, records: Mapping[str, ArrayRecord]) -> LeafSpec:
    record = records.get(name)
    if record is None:
        return dataclasses.replace(spec, name=name if spec.kind == "str" else None)
    other = record.storage_dtype if record.storage_dtype != record.dtype else None
    return dataclasses.replace(
        spec,
        name=name,
        chunk_shape=record.chunk_shape,
        write_shape=record.write_shape,
        storage_dtype=other,
    )


def _dtype_reason(specs: Sequence[LeafSpec]) -> str | None:
    for spec in specs:
        if spec.storage_dtype is not None:
            return f"dtype {spec.dtype}, which zarr does not know"
    return None


def _strings(
    specs: Sequence[LeafSpec], described: DescribedTree
) -> tuple[StringsFile | None, str | None]:
    found = {}
    for spec, path in zip(specs, described.paths, strict=True):
        if spec.kind != "str":
            continue
        if not isinstance(spec.value, str):
            return None, f"{show(path)}: text that UTF-8 cannot hold"
        found[str(spec.name)] = spec.value
    if not found:
        return None, None
    file = StringsFile(found)
    try:
        file.to_bytes()
    except MetadataError as error:
        return None, str(error)
    return file, None


def _digests(records: Sequence[ArrayRecord]) -> ChunkDigests:
    return ChunkDigests(
        {
            record.name: ArrayDigests(
                record.storage_dtype, record.shape, record.chunk_shape, record.digests
            )
            for record in records
        }
    )


def _array_entry(spec: LeafSpec, records: Mapping[str, ArrayRecord]) -> ArrayMetadataEntry:
    record = records[str(spec.name)]
    return ArrayMetadataEntry(record.name, record.write_shape, record.chunk_shape, spec.key_impl)


def _node(shape: Shape, specs: Any) -> Node:
    if shape.kind == "leaf":
        return LeafNode(next(specs))
    if shape.kind == "none":
        return NoneNode()
    children = tuple(_node(child, specs) for child in shape.children)
    if shape.kind in ("list", "tuple"):
        return SequenceNode(shape.kind, children)
    if shape.kind == "namedtuple":
        return NamedTupleNode(str(shape.type), tuple(map(str, shape.steps)), children)
    keys = tuple(step for step in shape.steps if isinstance(step, Key))
    if shape.kind == "dict":
        return DictNode(shape.type, keys, children)
    return CustomNode(str(shape.type), keys, children, shape.kind, shape.indexed)


def _entries(described: DescribedTree, specs: Sequence[LeafSpec]) -> list[ItemEntry]:
    remaining = iter(specs)
    found: list[ItemEntry] = []

    def visit(shape: Shape, path: tuple[tuple[str, int], ...]) -> None:
        if shape.kind == "leaf":
            spec = next(remaining)
            value_type = _VALUE_TYPES.get(spec.kind)
            if value_type is not None and (spec.name is not None):
                arrays = spec.kind in ("jax.Array", "prng_key")
                found.append(
                    ItemEntry(path, value_type, write_shape=spec.write_shape if arrays else None)
                )
            return
        if not shape.children:
            found.append(ItemEntry(path, _EMPTY_TYPES.get(shape.kind, "None"), True))
            return
        positions = shape.kind in ("list", "tuple") or shape.indexed
        key_type = SEQUENCE_KEY if positions else DICT_KEY
        for step, child in zip(shape.steps, shape.children, strict=True):
            visit(child, (*path, (text(step), key_type)))

    visit(described.shape, ())
    return found


def inline_value(spec: LeafSpec) -> Any:
    """The value of a leaf that the document holds whole."""
    return decode_scalar(spec.kind, spec.value)


__all__ = ["DescribedTree", "ItemDocuments", "Step", "describe", "documents", "iterate_leaves"]
