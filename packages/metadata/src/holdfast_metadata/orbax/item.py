"""`_METADATA`: the tree of one PyTree item, as Orbax describes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields
from holdfast_metadata.json_codec import ordered_json

ITEM_METADATA_FILE = "_METADATA"
SEQUENCE_KEY = 1
DICT_KEY = 2


@dataclass(frozen=True, slots=True)
class ItemEntry:
    """A leaf, an empty container or None.

    Attributes:
        path: (key, key type) from the root; type 1 is a position, 2 a name.
        value_type: `jax.Array`, `np.ndarray`, `scalar`, `string`, `None`, `Dict`, `List`,
            `Tuple` or `NamedTuple`.
        skip_deserialize: True for everything without stored bytes.
        write_shape: Of what one device wrote; arrays only.
    """

    path: tuple[tuple[str, int], ...]
    value_type: str
    skip_deserialize: bool = False
    write_shape: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ItemMetadata:
    """The document.

    Attributes:
        entries: Leaves, empty containers and Nones, in the file's order, which means nothing.
        use_ocdbt: Whether arrays are in one OCDBT database; None, from a file that does not
            say, means: if there is one.
        use_zarr3: Whether arrays are zarr 3 and not zarr 2.
        store_array_data_equal_to_fill_value: Whether a missing chunk is damage.
        custom_metadata: Any JSON.
        extra: Fields this version does not know, kept.
    """

    entries: tuple[ItemEntry, ...]
    use_ocdbt: bool | None = True
    use_zarr3: bool = True
    store_array_data_equal_to_fill_value: bool = True
    custom_metadata: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as JSON; the map's keys are what Orbax writes, and no reader parses them.

        Raises:
            MetadataError: The custom metadata is not JSON.
        """
        tree: dict[str, Any] = {}
        for entry in self.entries:
            value: dict[str, Any] = {
                "value_type": entry.value_type,
                "skip_deserialize": entry.skip_deserialize,
            }
            if entry.write_shape is not None:
                value["write_shape"] = entry.write_shape
            keys = [{"key": key, "key_type": kind} for key, kind in entry.path]
            label = repr(tuple(key for key, _ in entry.path))
            if label in tree:  # paths that differ only in the types of their keys
                label = f"{label}#{len(tree)}"
            tree[label] = {"key_metadata": keys, "value_metadata": value}
        return ordered_json(
            {
                **self.extra,
                "tree_metadata": tree,
                "use_ocdbt": self.use_ocdbt,
                "use_zarr3": self.use_zarr3,
                "store_array_data_equal_to_fill_value": self.store_array_data_equal_to_fill_value,
                "custom_metadata": self.custom_metadata,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = ITEM_METADATA_FILE) -> ItemMetadata:
        """Decodes as tolerantly as Orbax: order is free, and so are the map's keys.

        Raises:
            MetadataError: A field is missing or has the wrong type.
        """
        fields = Fields.parse(data, source=source, lenient=True)
        tree = fields.take("tree_metadata", dict)
        return cls(
            entries=tuple(_entry(value, f"{source}: {key}") for key, value in tree.items()),
            use_ocdbt=fields.take("use_ocdbt", bool, None, default=None),
            use_zarr3=bool(fields.take("use_zarr3", bool, None, default=False)),
            store_array_data_equal_to_fill_value=bool(
                fields.take("store_array_data_equal_to_fill_value", bool, None, default=False)
            ),
            custom_metadata=fields.rest.pop("custom_metadata", None),
            extra=fields.rest,
        )


def _entry(stored: Any, source: str) -> ItemEntry:
    fields = Fields(stored, source=source)
    value = Fields(fields.take("value_metadata", dict), source=source)
    shape = value.take("write_shape", list, None, default=None)
    if shape is not None and not all(type(size) is int for size in shape):
        raise MetadataError(f"{source}: 'write_shape' must hold int, found {shape!r:.60}")
    return ItemEntry(
        path=tuple(_step(step, source) for step in fields.take("key_metadata", list)),
        value_type=value.take("value_type", str),
        skip_deserialize=value.take("skip_deserialize", bool),
        write_shape=None if shape is None else tuple(shape),
    )


def _step(stored: Any, source: str) -> tuple[str, int]:
    fields = Fields(stored, source=source)
    key, kind = fields.take("key", str, int), fields.take("key_type", int)
    if kind not in (SEQUENCE_KEY, DICT_KEY):
        raise MetadataError(f"{source}: key_type must be 1 or 2, found {kind}")
    return str(key), kind
