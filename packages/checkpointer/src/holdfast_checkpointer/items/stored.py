"""An item that is on storage, in one representation whoever wrote it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.arrays.formats import ArrayFormat
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArrayReader, ArraySource
from holdfast_checkpointer.bursts import uncollected
from holdfast_metadata import (
    DIGESTS_DIR,
    TREE_FILE,
    ArrayDigests,
    ChunkDigests,
    DictNode,
    Key,
    LeafNode,
    LeafSpec,
    Node,
    NoneNode,
    SequenceNode,
    TreeDocument,
    encode_scalar,
)
from holdfast_metadata.orbax import (
    ARRAY_METADATA_DIR,
    ITEM_METADATA_FILE,
    SHARDING_FILE,
    STRINGS_FILE,
    ArrayMetadataFile,
    ItemEntry,
    ItemMetadata,
    ShardingFile,
    StringsFile,
)
from holdfast_metadata.orbax.item import SEQUENCE_KEY
from holdfast_storage import CheckpointNotFoundError, DamagedCheckpointError, ReadArea

_OCDBT_MANIFEST = "manifest.ocdbt"
_KINDS = {
    "jax.Array": "jax.Array",
    "np.ndarray": "np.ndarray",
    "scalar": "scalar",
    "string": "str",
}


@dataclass(frozen=True)
class StoredItem:
    """An item's tree and where its arrays are.

    Attributes:
        area: The item's scope.
        tree: Its tree. Orbax's carry no shapes: the arrays themselves have them.
        layout: How the arrays are laid out.
        digests: By parameter name; empty for Orbax's.
        ours: Whether holdfast wrote it.
    """

    area: ReadArea
    tree: TreeDocument
    layout: ArrayFormat
    digests: Mapping[str, ArrayDigests] = field(default_factory=dict)
    ours: bool = True

    def reader(self, options: ArrayLoadOptions) -> ArraySource:
        """What reads its arrays; one per operation."""
        layout = self.layout
        if not self.ours and not options.raise_array_data_missing_error:
            layout = dataclasses.replace(layout, zeros_left_out=True)
        return ArrayReader(self.area.kv_target(), layout, options, label=self.area.label)


async def open_item(area: ReadArea, *, digests: bool = True) -> StoredItem:
    """Reads the documents of an item.

    Raises:
        CheckpointNotFoundError: It is no PyTree.
        MetadataError: A document is not what it should be.
    """
    names = set(await area.names())
    if TREE_FILE in names:
        return await _open_ours(area, digests=digests)
    if ITEM_METADATA_FILE in names:
        return await _open_orbax(area, names)
    raise CheckpointNotFoundError(
        f"{area.label} holds no PyTree ({ITEM_METADATA_FILE} is missing); load_checkpointables and "
        "a composite handler load several items and those of other kinds"
    )


async def _open_ours(area: ReadArea, *, digests: bool) -> StoredItem:
    data = await area.get(TREE_FILE)
    with uncollected():
        tree = TreeDocument.from_bytes(data, source=f"{area.label}/{TREE_FILE}")
    arrays: dict[str, ArrayDigests] = {}
    if digests:
        folder = area.child(DIGESTS_DIR)
        for name in await folder.names():
            data = await folder.get(name)
            with uncollected():
                file = ChunkDigests.from_bytes(data, source=f"{folder.label}/{name}")
            arrays.update(file.arrays)
    return StoredItem(area, tree, ArrayFormat(), arrays)


async def _open_orbax(area: ReadArea, names: set[str]) -> StoredItem:
    source = f"{area.label}/{ITEM_METADATA_FILE}"
    metadata = ItemMetadata.from_bytes(await area.get(ITEM_METADATA_FILE), source=source)
    ocdbt = metadata.use_ocdbt if metadata.use_ocdbt is not None else _OCDBT_MANIFEST in names
    shardings: Mapping[str, Mapping[str, Any]] = {}
    if SHARDING_FILE in names:
        shardings = ShardingFile.from_bytes(await area.get(SHARDING_FILE)).shardings
    impls: dict[str, str] = {}
    if f"{ARRAY_METADATA_DIR}/" in names:
        folder = area.child(ARRAY_METADATA_DIR)
        for name in await folder.names():
            for entry in ArrayMetadataFile.from_bytes(await folder.get(name)).entries:
                if entry.key_impl is not None:
                    impls[entry.name] = entry.key_impl
    wanted = [_name(e) for e in metadata.entries if e.value_type == "string"]
    strings: Mapping[str, str] = {}
    if wanted:
        if STRINGS_FILE not in names:
            raise DamagedCheckpointError(
                f"the file {STRINGS_FILE!r} is missing", file=STRINGS_FILE, root=area.label
            )
        strings = StringsFile.lookup(await area.get(STRINGS_FILE), wanted).strings
    specs = [(e, _spec(e, shardings, impls, strings)) for e in metadata.entries]
    tree = TreeDocument(_tree(specs))
    layout = ArrayFormat(
        ocdbt=bool(ocdbt),
        zarr=3 if metadata.use_zarr3 else 2,
        zeros_left_out=not metadata.store_array_data_equal_to_fill_value,
    )
    return StoredItem(area, tree, layout, ours=False)


def _name(entry: ItemEntry) -> str:
    return ".".join(key for key, _ in entry.path)


def _spec(
    entry: ItemEntry,
    shardings: Mapping[str, Mapping[str, Any]],
    impls: Mapping[str, str],
    strings: Mapping[str, str],
) -> LeafSpec | str:
    """The leaf that an entry speaks of, or the kind of empty container."""
    kind = _KINDS.get(entry.value_type)
    if kind is None:
        return entry.value_type
    name = _name(entry)
    if kind == "str":
        return LeafSpec("str", name, value=encode_scalar("str", strings[name]))
    if name in impls:
        kind = "prng_key"
    return LeafSpec(
        kind,
        name,
        sharding=shardings.get(name),
        key_impl=impls.get(name),
        write_shape=entry.write_shape,
    )


def _tree(specs: list[tuple[ItemEntry, LeafSpec | str]]) -> Node:
    """Nests the entries: positions make lists, names make dicts."""
    root: dict[tuple[str, int], Any] = {}
    for entry, spec in specs:
        if not entry.path:
            return _end(spec)
        node = root
        for step in entry.path[:-1]:
            below = node.setdefault(step, {})
            if not isinstance(below, dict):  # a container's own entry, then its children
                below = node[step] = {}
            node = below
        if entry.path[-1] not in node:
            node[entry.path[-1]] = spec
    return _nest(root)


def _nest(node: Any) -> Node:
    if not isinstance(node, dict):
        return _end(node)
    if node and all(kind == SEQUENCE_KEY for _, kind in node):
        ordered = sorted(node.items(), key=lambda item: int(item[0][0]))
        return SequenceNode("list", tuple(_nest(child) for _, child in ordered))
    ordered = sorted(node.items(), key=lambda item: item[0][0])
    keys = tuple(Key("str", name) for (name, _), _ in ordered)
    return DictNode(None, keys, tuple(_nest(child) for _, child in ordered))


def _end(spec: LeafSpec | str) -> Node:
    if isinstance(spec, LeafSpec):
        return LeafNode(spec)
    match spec:
        case "Dict":
            return DictNode(None, (), ())
        case "List" | "Tuple":
            return SequenceNode(spec.lower(), ())
    return NoneNode()
