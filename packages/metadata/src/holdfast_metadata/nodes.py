"""The nodes and leaves of a stored PyTree, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_metadata.keys import Key

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
        value: The encoded value of a scalar, see `encode_scalar`.
        extra: Fields this version does not know, kept; None if there are none.
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
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DictNode:
    """A mapping; `type` is "module:qualname", or None for the builtin dict."""

    type: str | None
    keys: tuple[Key, ...]
    children: tuple[Node, ...]
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SequenceNode:
    """A list or a tuple, as `kind` says."""

    kind: str
    children: tuple[Node, ...]
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NamedTupleNode:
    """A named tuple; `type` is "module:qualname"."""

    type: str
    fields: tuple[str, ...]
    children: tuple[Node, ...]
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CustomNode:
    """A registered class.

    Attributes:
        type: "module:qualname".
        keys: What JAX calls its children.
        children: In JAX's order.
        style: `dataclass` or `custom`.
        indexed: Whether the children have positions rather than names.
        extra: Fields this version does not know, kept; None if there are none.
    """

    type: str
    keys: tuple[Key, ...]
    children: tuple[Node, ...]
    style: str = "custom"
    indexed: bool = False
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class NoneNode:
    """None, which JAX takes for an empty container."""

    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LeafNode:
    """A leaf."""

    spec: LeafSpec


Node = DictNode | SequenceNode | NamedTupleNode | CustomNode | NoneNode | LeafNode
Step = Key | str | int


def steps_of(node: Node) -> tuple[Step, ...]:
    """What leads from a node to each of its children: keys, positions or field names."""
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
