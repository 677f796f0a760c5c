"""Taking a PyTree apart, one level at a time, with every type remembered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from holdfast_checkpointer.errors import UnsupportedLeafError
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import Key, MetadataError
from holdfast_metadata.tree import Step

Path = tuple[Step, ...]
_NONE = jax.tree_util.tree_structure(None)
_LEAF = jax.tree_util.tree_structure(0)
_AT_LEAF = object()


@dataclass(frozen=True)
class Shape:
    """One node of a tree whose leaves have been taken out.

    Attributes:
        kind: `dict`, `list`, `tuple`, `namedtuple`, `dataclass`, `custom`, `none` or `leaf`.
        type: "module:qualname", or None for builtin containers.
        steps: What leads to each child.
        children: The children.
        indexed: For `custom`: children have positions, not names.
    """

    kind: str
    type: str | None = None
    steps: tuple[Step, ...] = ()
    children: tuple[Shape, ...] = ()
    indexed: bool = False


NONE = Shape("none")
LEAF = Shape("leaf")


def take_apart(tree: Any) -> tuple[Shape, list[tuple[Path, Any]]]:
    """The shape of a tree, and its leaves in JAX's order with their paths.

    Raises:
        UnsupportedLeafError: Keys cannot be stored or ordered; the paths are listed.
    """
    leaves: list[tuple[Path, Any]] = []
    problems: list[str] = []
    shape = _visit(tree, (), leaves, problems)
    if problems:
        raise UnsupportedLeafError(problems)
    return shape, leaves


def flatten_like(structure: Any, tree: Any, is_leaf: Callable[[Any], bool]) -> list[Any]:
    """What a second tree has at the leaves of a structure.

    Where the structure has an empty container or None, the second tree may have a leaf of its
    kind, as trees have that were made with such nodes for leaves; it is left out.

    Raises:
        ValueError: (or `TypeError`, `KeyError`) It has another structure.
    """
    try:
        return list(structure.flatten_up_to(tree))
    except (ValueError, TypeError, KeyError):
        skeleton = structure.unflatten([_AT_LEAF] * structure.num_leaves)
        wider: Any
        nodes, wider = jax.tree_util.tree_flatten(
            skeleton, is_leaf=lambda node: not jax.tree_util.tree_leaves(node)
        )
        found = list(zip(nodes, wider.flatten_up_to(tree), strict=True))
        if not all(node is _AT_LEAF or is_leaf(one) or one == node for node, one in found):
            raise
        return [one for node, one in found if node is _AT_LEAF]


def _visit(node: Any, path: Path, leaves: list[tuple[Path, Any]], problems: list[str]) -> Shape:
    if node is None:
        return NONE
    kind = type(node)
    try:
        level = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    except (TypeError, ValueError) as error:
        problems.append(f"{show(path)}: {kind.__name__} cannot be taken apart: {error}")
        return LEAF
    if level is None:
        leaves.append((path, node))
        return LEAF
    entries = list(level[0])
    try:
        style, type_name, steps, indexed = _describe(node, [key for key, _ in entries])
    except MetadataError as error:
        problems.append(f"{show(path)}: {error}")
        return LEAF
    if len(set(steps)) != len(steps):
        problems.append(f"{show(path)}: two children of a {kind.__name__} have the same key")
        return LEAF
    children = tuple(
        _visit(child, (*path, step), leaves, problems)
        for step, (_, child) in zip(steps, entries, strict=True)
    )
    return Shape(style, type_name, steps, children, indexed)


def _describe(node: Any, jax_keys: list[Any]) -> tuple[str, str | None, tuple[Step, ...], bool]:
    kind = type(node)
    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind is list or kind is tuple:
        return kind.__name__, None, tuple(range(len(jax_keys))), False
    if isinstance(node, tuple) and hasattr(kind, "_fields"):
        return "namedtuple", name, tuple(kind._fields), False
    if kind is dict:
        return "dict", None, tuple(Key.of(key.key) for key in jax_keys), False
    keys = tuple(_key(key) for key in jax_keys)
    indexed = bool(jax_keys) and all(
        isinstance(key, FlattenedIndexKey | SequenceKey) for key in jax_keys
    )
    if isinstance(node, Mapping):
        return "dict", name, keys, False
    if dataclasses.is_dataclass(kind):
        return "dataclass", name, keys, indexed
    return "custom", name, keys, indexed


def _key(key: Any) -> Key:
    """What JAX calls a child, as a key."""
    match key:
        case DictKey(key=value):
            return Key.of(value)
        case GetAttrKey(name=value):
            return Key.of(value)
        case SequenceKey(idx=value):
            return Key.of(value)
        case FlattenedIndexKey(key=value):
            return Key.of(value)
    return Key.of(str(key))
