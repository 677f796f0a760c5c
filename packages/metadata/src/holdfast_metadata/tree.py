"""`_TREE.json`: the whole PyTree with its types, shapes, dtypes, shardings and scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json
from holdfast_metadata.keys import Key
from holdfast_metadata.nodes import (
    LEAF_KINDS,
    CustomNode,
    DictNode,
    LeafNode,
    LeafSpec,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
    Step,
    children_of,
    iterate_leaves,
    steps_of,
)

__all__ = [
    "LEAF_KINDS",
    "TREE_FILE",
    "CustomNode",
    "DictNode",
    "LeafNode",
    "LeafSpec",
    "NamedTupleNode",
    "Node",
    "NoneNode",
    "SequenceNode",
    "Step",
    "TreeDocument",
    "children_of",
    "iterate_leaves",
    "steps_of",
]

TREE_FILE = "_TREE.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TreeDocument:
    """One item's tree.

    Attributes:
        root: The tree.
        handler: Which of holdfast's handlers wrote it.
        orbax_unreadable: Why Orbax cannot read the item; None if it can.
        format_version: Of this document.
        extra: Fields this version does not know, kept; nodes and leaves have their own.

    Examples:
        >>> TreeDocument(
        ...     DictNode(None, (Key.of(1),), (NoneNode(),))
        ... ).to_bytes()  # doctest: +ELLIPSIS
        b'{..."root":{"children":[{"node":"none"}],"keys":[["int","1"]],"node":"dict"},...}'
    """

    root: Node
    handler: str | None = None
    orbax_unreadable: str | None = None
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def leaves(self) -> Iterator[tuple[tuple[Step, ...], LeafSpec]]:
        """Yields (path, leaf) in the tree's order."""
        return iterate_leaves(self.root)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON.

        Raises:
            MetadataError: The tree is nested too deeply.
        """
        shardings = _Shardings()
        try:
            root = _node_to_json(self.root, shardings)
        except RecursionError as error:
            raise MetadataError("the tree is nested too deeply to be described") from error
        known = {
            "format_version": self.format_version,
            "handler": self.handler,
            "orbax_unreadable": self.orbax_unreadable,
            "root": root,
            "shardings": shardings.rows,
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = TREE_FILE) -> TreeDocument:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document; the message says where in the tree, by
                positions: `root/0/2` is the third child of the first child of the root.
        """
        fields = Fields.parse(data, source=source)
        version = fields.version(FORMAT_VERSION)
        shardings = fields.take_list("shardings", dict)
        try:
            root = _node_from_json(fields.take("root", dict), f"{source}: root", shardings)
        except RecursionError as error:
            raise MetadataError(f"{source}: the tree is nested too deeply") from error
        return cls(
            root=root,
            handler=fields.take("handler", str, None),
            orbax_unreadable=fields.take("orbax_unreadable", str, None),
            format_version=version,
            extra=fields.rest,
        )


class _Shardings:
    """Each sharding once: thousands of leaves share a few, and each may name every device."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []
        self._by_id: dict[int, int] = {}
        self._by_text: dict[bytes, int] = {}

    def position(self, sharding: Mapping[str, Any]) -> int:
        """Where the sharding stands among the rows; a new one is added."""
        found = self._by_id.get(id(sharding))
        if found is None:
            found = self._by_text.setdefault(canonical_json(sharding), len(self.rows))
            if found == len(self.rows):
                self.rows.append(sharding)
            self._by_id[id(sharding)] = found
        return found


_LEAF_TYPES: dict[str, type] = {
    **dict.fromkeys(("name", "dtype", "key_impl", "storage_dtype"), str),
    **dict.fromkeys(("shape", "chunk_shape", "write_shape"), list),
    "weak_type": bool,
    "sharding": int,  # a position among the document's shardings
    "value": object,
}
_LEAF_FIELDS = tuple(_LEAF_TYPES)


def _leaf_to_json(spec: LeafSpec, shardings: _Shardings) -> dict[str, Any]:
    found: dict[str, Any] = {**spec.extra} if spec.extra else {}
    found["leaf"] = spec.kind
    for name in _LEAF_FIELDS:
        value = getattr(spec, name)
        if value is not None and value is not False:
            found[name] = value
    if spec.value is False:
        found["value"] = False
    if spec.sharding is not None:
        found["sharding"] = shardings.position(spec.sharding)
    return found


def _leaf_from_json(
    stored: dict[str, Any], where: str, shardings: Sequence[Mapping[str, Any]]
) -> LeafSpec:
    kind = stored.pop("leaf")
    if kind not in LEAF_KINDS:
        raise MetadataError(
            f"{where}: unknown kind of leaf {kind!r:.60}; known are {', '.join(LEAF_KINDS)}"
        )
    extra = None
    if not stored.keys() <= _LEAF_TYPES.keys():
        extra = {name: stored.pop(name) for name in stored.keys() - _LEAF_TYPES.keys()}
    for name, value in stored.items():
        expected = _LEAF_TYPES[name]
        if expected is list:
            stored[name] = _sizes(name, value, where)
        elif expected is not object and type(value) is not expected:
            raise MetadataError(
                f"{where}: {name!r} must be {expected.__name__}, found {value!r:.60}"
            )
    if "sharding" in stored:
        position = stored["sharding"]
        if not 0 <= position < len(shardings):
            raise MetadataError(
                f"{where}: 'sharding' must be a position among {len(shardings)} shardings, "
                f"found {position}"
            )
        stored["sharding"] = shardings[position]
    return LeafSpec(kind, **stored, extra=extra)


def _sizes(name: str, value: Any, where: str) -> tuple[int, ...]:
    if type(value) is not list or not all(type(size) is int and size >= 0 for size in value):
        raise MetadataError(f"{where}: {name!r} must be a list of sizes, found {value!r:.60}")
    return tuple(value)


def _node_to_json(node: Node, shardings: _Shardings) -> dict[str, Any]:
    if isinstance(node, LeafNode):
        return _leaf_to_json(node.spec, shardings)
    found: dict[str, Any] = {**node.extra} if node.extra else {}
    match node:
        case NoneNode():
            found["node"] = "none"
            return found
        case DictNode(type=kind, keys=keys):
            found |= {"node": "dict", "keys": [key.to_json() for key in keys]}
            if kind is not None:
                found["type"] = kind
        case SequenceNode(kind=kind):
            found["node"] = kind
        case NamedTupleNode(type=kind, fields=names):
            found |= {"node": "namedtuple", "type": kind, "fields": names}
        case CustomNode(type=kind, keys=keys, style=style, indexed=indexed):
            found |= {"node": style, "type": kind, "keys": [key.to_json() for key in keys]}
            found["indexed"] = indexed
    found["children"] = [_node_to_json(child, shardings) for child in node.children]
    return found


def _node_from_json(stored: Any, where: str, shardings: Sequence[Mapping[str, Any]]) -> Node:
    if type(stored) is dict and "leaf" in stored:
        return LeafNode(_leaf_from_json(stored, where, shardings))
    fields = Fields(stored, source=where)
    kind = fields.choice("node", _BUILDERS)
    if kind == "none":
        return NoneNode(fields.rest or None)
    children = tuple(
        _node_from_json(child, f"{where}/{index}", shardings)
        for index, child in enumerate(fields.take("children", list))
    )
    node = _BUILDERS[kind](fields, kind, children)
    if len(steps_of(node)) != len(children):
        raise MetadataError(
            f"{where}: a {kind} with {len(steps_of(node))} keys has {len(children)} children"
        )
    return node


def _keys(fields: Fields) -> tuple[Key, ...]:
    stored = fields.take("keys", list)
    try:
        return tuple([Key.from_json(key) for key in stored])
    except MetadataError as error:
        raise MetadataError(f"{fields.source}: {error}") from error


def _dict(fields: Fields, _kind: str, children: tuple[Node, ...]) -> Node:
    name = fields.take("type", str, default=None)
    return DictNode(name, _keys(fields), children, fields.rest or None)


def _sequence(fields: Fields, kind: str, children: tuple[Node, ...]) -> Node:
    return SequenceNode(kind, children, fields.rest or None)


def _namedtuple(fields: Fields, _kind: str, children: tuple[Node, ...]) -> Node:
    name, names = fields.take("type", str), fields.take_list("fields", str)
    return NamedTupleNode(name, names, children, fields.rest or None)


def _custom(fields: Fields, kind: str, children: tuple[Node, ...]) -> Node:
    name, indexed = fields.take("type", str), fields.take("indexed", bool)
    return CustomNode(name, _keys(fields), children, kind, indexed, fields.rest or None)


_BUILDERS: dict[str, Callable[[Fields, str, tuple[Node, ...]], Node]] = {
    "none": _sequence,  # handled before: it has no children
    "dict": _dict,
    "list": _sequence,
    "tuple": _sequence,
    "namedtuple": _namedtuple,
    "dataclass": _custom,
    "custom": _custom,
}
