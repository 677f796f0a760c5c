"""`_TREE.json`: the whole PyTree with its types, shapes, dtypes, shardings and scalars."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json
from holdfast_metadata.keys import Key

TREE_FILE = "_TREE.json"
FORMAT_VERSION = 1
LEAF_KINDS = (
    *("jax.Array", "prng_key", "np.ndarray", "np.generic"),
    *("int", "float", "bool", "complex", "str", "bytes"),
    "scalar",  # a number that Orbax wrote: its array tells which Python type it is
)


@dataclass(frozen=True, slots=True)
class LeafSpec:
    """One leaf.

    Attributes:
        kind: One of `LEAF_KINDS`.
        name: Its parameter name in the array store; None if it is only inline.
        shape: Of the array, for a PRNG key of the key array; None if unknown.
        dtype: Name of the dtype; None for scalars, and if unknown.
        weak_type: JAX's flag.
        sharding: As JSON, with Orbax's fields; None if there is none to tell.
        key_impl: Implementation of a typed PRNG key.
        chunk_shape: Of a stored chunk.
        write_shape: Of what one device wrote.
        storage_dtype: Name of the dtype on disk where it is not `dtype`.
        value: The encoded value of a scalar, see `scalars`.
    """

    kind: str
    name: str | None = None
    shape: tuple[int, ...] | None = None
    dtype: str | None = None
    weak_type: bool = False
    sharding: Mapping[str, Any] | None = None
    key_impl: str | None = None
    chunk_shape: tuple[int, ...] | None = None
    write_shape: tuple[int, ...] | None = None
    storage_dtype: str | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class DictNode:
    """A mapping; `type` is "module:qualname", or None for the builtin dict."""

    type: str | None
    keys: tuple[Key, ...]
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list or a tuple, as `kind` says."""

    kind: str
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class NamedTupleNode:
    """A named tuple."""

    type: str
    fields: tuple[str, ...]
    children: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class CustomNode:
    """A registered class.

    Attributes:
        type: "module:qualname".
        keys: What JAX calls its children.
        children: In JAX's order.
        style: `dataclass` or `custom`.
        indexed: Whether the children have positions rather than names.
    """

    type: str
    keys: tuple[Key, ...]
    children: tuple[Node, ...]
    style: str = "custom"
    indexed: bool = False


@dataclass(frozen=True, slots=True)
class NoneNode:
    """None, which JAX takes for an empty container."""


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A leaf."""

    spec: LeafSpec


Node = DictNode | SequenceNode | NamedTupleNode | CustomNode | NoneNode | LeafNode
Step = Key | str | int


@dataclass(frozen=True, slots=True)
class TreeDocument:
    """One item's tree.

    Attributes:
        root: The tree.
        handler: Which of holdfast's handlers wrote it.
        orbax_unreadable: Why Orbax cannot read the item; None if it can.
    """

    root: Node
    handler: str | None = None
    orbax_unreadable: str | None = None
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def leaves(self) -> Iterator[tuple[tuple[Step, ...], LeafSpec]]:
        """Yields (path, leaf) in the tree's order."""
        yield from iterate_leaves(self.root)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "handler": self.handler,
            "orbax_unreadable": self.orbax_unreadable,
            "root": _node_to_json(self.root),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = TREE_FILE) -> TreeDocument:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        version = fields.version(FORMAT_VERSION)
        root = fields.take("root", dict)
        try:
            node = _node_from_json(root)
        except MetadataError as error:
            raise MetadataError(f"{source}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MetadataError(f"{source}: a node is not described as it should be") from error
        return cls(
            root=node,
            handler=fields.take("handler", str, None, default=None),
            orbax_unreadable=fields.take("orbax_unreadable", str, None, default=None),
            format_version=version,
            extra=fields.rest,
        )


def steps_of(node: Node) -> tuple[Step, ...]:
    """What leads from a node to each of its children."""
    match node:
        case DictNode(keys=keys) | CustomNode(keys=keys):
            return keys
        case SequenceNode(children=children):
            return tuple(range(len(children)))
        case NamedTupleNode(fields=names):
            return names
        case _:
            return ()


def children_of(node: Node) -> tuple[Node, ...]:
    """The children of a node."""
    return () if isinstance(node, NoneNode | LeafNode) else node.children


def iterate_leaves(
    node: Node, path: tuple[Step, ...] = ()
) -> Iterator[tuple[tuple[Step, ...], LeafSpec]]:
    """Yields (path, leaf) below a node, in order."""
    if isinstance(node, LeafNode):
        yield path, node.spec
        return
    for step, child in zip(steps_of(node), children_of(node), strict=True):
        yield from iterate_leaves(child, (*path, step))


_LEAF_DEFAULTS = LeafSpec(kind="")
_LEAF_FIELDS = tuple(name for name in LeafSpec.__slots__ if name != "kind")
_TUPLES = frozenset(("shape", "chunk_shape", "write_shape"))


def _leaf_to_json(spec: LeafSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"leaf": spec.kind}
    for name in _LEAF_FIELDS:
        value = getattr(spec, name)
        if value is not None and value is not False:
            found[name] = value
    if spec.value is False:
        found["value"] = False
    return found


def _leaf_from_json(stored: dict[str, Any]) -> LeafSpec:
    kind = stored.pop("leaf")
    if kind not in LEAF_KINDS:
        raise MetadataError(f"unknown kind of leaf {kind!r}; known are {', '.join(LEAF_KINDS)}")
    for name in _TUPLES & stored.keys():
        sizes = stored[name]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise MetadataError(f"{name} must be a list of sizes, found {sizes!r:.60}")
        stored[name] = tuple(sizes)
    return LeafSpec(kind=kind, **{n: stored[n] for n in _LEAF_FIELDS if n in stored})


def _node_to_json(node: Node) -> dict[str, Any]:
    if isinstance(node, LeafNode):
        return _leaf_to_json(node.spec)
    if isinstance(node, NoneNode):
        return {"node": "none"}
    children = [_node_to_json(child) for child in node.children]
    match node:
        case DictNode(type=kind, keys=keys):
            found: dict[str, Any] = {"node": "dict", "keys": [key.to_json() for key in keys]}
            if kind is not None:
                found["type"] = kind
        case SequenceNode(kind=kind):
            found = {"node": kind}
        case NamedTupleNode(type=kind, fields=names):
            found = {"node": "namedtuple", "type": kind, "fields": names}
        case CustomNode(type=kind, keys=keys, style=style, indexed=indexed):
            found = {"node": style, "type": kind, "keys": [key.to_json() for key in keys]}
            found["indexed"] = indexed
    found["children"] = children
    return found


def _node_from_json(stored: dict[str, Any]) -> Node:
    if "leaf" in stored:
        return LeafNode(_leaf_from_json(stored))
    kind = stored["node"]
    build = _BUILDERS.get(kind)
    if build is None:
        raise MetadataError(f"unknown kind of node {kind!r}; known are {', '.join(_BUILDERS)}")
    children = tuple(_node_from_json(child) for child in stored.get("children", ()))
    node = build(stored, children)
    if len(steps_of(node)) != len(children):
        raise MetadataError(f"a {kind} has {len(steps_of(node))} keys and {len(children)} children")
    return node


def _keys(stored: dict[str, Any]) -> tuple[Key, ...]:
    return tuple(Key.from_json(key) for key in stored["keys"])


def _custom(stored: dict[str, Any], children: tuple[Node, ...]) -> Node:
    return CustomNode(
        stored["type"], _keys(stored), children, stored["node"], bool(stored.get("indexed"))
    )


_BUILDERS: dict[str, Callable[[dict[str, Any], tuple[Node, ...]], Node]] = {
    "none": lambda _stored, _children: NoneNode(),
    "dict": lambda stored, children: DictNode(stored.get("type"), _keys(stored), children),
    "list": lambda _stored, children: SequenceNode("list", children),
    "tuple": lambda _stored, children: SequenceNode("tuple", children),
    "namedtuple": lambda stored, children: NamedTupleNode(
        stored["type"], tuple(stored["fields"]), children
    ),
    "dataclass": _custom,
    "custom": _custom,
}
