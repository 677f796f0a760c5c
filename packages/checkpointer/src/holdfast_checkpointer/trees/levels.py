"""One level of a caller's PyTree: its children with their keys, and how to put it back."""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

IsLeaf = Callable[[Any], bool] | None


def key_of(entry: Any) -> Any:
    """What a step of a JAX key path holds: a key, a position or a field's name."""
    match entry:
        case DictKey(key=value) | FlattenedIndexKey(key=value):
            return value
        case GetAttrKey(name=value):
            return value
        case SequenceKey(idx=value):
            return value
    return str(entry)


def children(node: Any, is_leaf: IsLeaf = None) -> list[tuple[Any, Any]] | None:
    """The children of a node with their keys; None for a leaf, and for None."""
    if node is None or (is_leaf is not None and is_leaf(node)):
        return None
    if type(node) in (dict, collections.OrderedDict, collections.defaultdict):
        return list(node.items())  # JAX would sort the keys, which may be of several types
    if isinstance(node, tuple) and hasattr(type(node), "_fields"):
        fields: Any = type(node)
        return list(zip(fields._fields, node, strict=True))
    level = jax.tree_util.default_registry.flatten_one_level_with_keys(node)
    if level is None:
        return None
    found = [(key_of(entry), child) for entry, child in level[0]]
    if isinstance(node, Mapping) and set(node) == {key for key, _ in found}:
        return [(key, node[key]) for key in node]  # in the caller's order, not in JAX's
    return found


def is_sequence(node: Any) -> bool:
    """Whether children have positions only: a list, or a tuple without names."""
    return type(node) in (list, tuple)


def put_back(node: Any, found: Sequence[tuple[Any, Any]]) -> Any:
    """A node like `node` with other children; a mapping may get other keys, too.

    Raises:
        ValueError: A class with fixed children would get others.
    """
    kind: Any = type(node)
    values = [value for _, value in found]
    if is_sequence(node):
        return kind(values)
    if isinstance(node, collections.defaultdict):
        return kind(node.default_factory, found)
    if isinstance(node, Mapping):
        return kind(dict(found))
    there = [key for key, _ in children(node) or []]
    if there != [key for key, _ in found]:
        raise ValueError(f"a {kind.__name__} has {there}, not {[key for key, _ in found]}")
    if isinstance(node, tuple) and hasattr(kind, "_fields"):
        return kind(*values)
    outline = jax.tree_util.tree_structure(node, is_leaf=lambda inner: inner is not node)
    return jax.tree_util.tree_unflatten(outline, values)
