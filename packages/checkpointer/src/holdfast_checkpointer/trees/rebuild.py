"""Putting a tree together without a target: containers as they were, as far as they are known."""

from __future__ import annotations

import collections
import keyword
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from holdfast_checkpointer.trees.paths import text
from holdfast_metadata import (
    CustomNode,
    DictNode,
    LeafNode,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
)


def rebuild(
    root: Node, leaves: Sequence[Any], *, types: Sequence[type] = (), as_orbax: bool = False
) -> Any:
    """Builds the tree around its leaves.

    Args:
        root: The saved tree.
        leaves: The values, in the tree's order.
        types: Named tuple classes to use besides those already imported.
        as_orbax: Give the containers that Orbax would: lists for tuples, dicts with text
            keys for everything with names, None for empty named tuples.

    Returns:
        Builtin containers as saved; a named tuple as its class if that is imported (or in
        `types`) and has the same fields, else as a new class of that name; dataclasses and
        other registered classes as a dict by field, or a list if they have positions.
        Nothing is ever imported because a file names it.
    """
    return _Builder(iter(leaves), types, as_orbax).build(root)


class _Builder:
    def __init__(self, leaves: Iterator[Any], types: Sequence[type], as_orbax: bool) -> None:
        self._leaves = leaves
        self._types = {f"{kind.__module__}:{kind.__qualname__}": kind for kind in types}
        self._as_orbax = as_orbax
        self._made: dict[tuple[str, tuple[str, ...]], Any] = {}

    def build(self, node: Node) -> Any:
        match node:
            case LeafNode():
                return next(self._leaves)
            case NoneNode():
                return None
            case SequenceNode(kind=kind, children=children):
                found = [self.build(child) for child in children]
                return found if self._as_orbax or kind == "list" else tuple(found)
            case NamedTupleNode():
                return self._named_tuple(node)
            case DictNode(keys=keys, children=children) | CustomNode(keys=keys, children=children):
                values = [self.build(child) for child in children]
                if isinstance(node, CustomNode) and node.indexed:
                    return values
                if self._as_orbax:
                    return {text(key): value for key, value in zip(keys, values, strict=True)}
                return {key.python(): value for key, value in zip(keys, values, strict=True)}

    def _named_tuple(self, node: NamedTupleNode) -> Any:
        values = [self.build(child) for child in node.children]
        if self._as_orbax:
            return dict(zip(node.fields, values, strict=True)) if values else None
        return self._class_of(node)(*values)

    def _class_of(self, node: NamedTupleNode) -> Any:
        known = self._types.get(node.type) or _imported(node.type)
        if known is not None and getattr(known, "_fields", None) == node.fields:
            return known
        key = (node.type, node.fields)
        if key not in self._made:
            name = node.type.rpartition(":")[2].rpartition(".")[2]
            usable = name if name.isidentifier() and not keyword.iskeyword(name) else "NamedTuple"
            self._made[key] = collections.namedtuple(usable, node.fields)  # noqa: PYI024
        return self._made[key]


def _imported(type_name: str) -> Any:
    """The class of that name, if its module is imported already."""
    module, _, qualified = type_name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualified.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, tuple) else None
