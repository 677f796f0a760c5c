"""Joining saved trees that have no leaf in common: what is in which, and what is in both."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from holdfast_checkpointer.trees.paths import show
from holdfast_checkpointer.trees.structure import Shape
from holdfast_metadata import (
    CustomNode,
    DictNode,
    Key,
    LeafNode,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
)
from holdfast_metadata.tree import Step, children_of, iterate_leaves, steps_of

Path = tuple[Step, ...]


def join(first: Node, second: Node) -> tuple[Node, list[str]]:
    """The tree that holds both, and what stands against it, in words with paths.

    Containers of one kind are joined child by child. A leaf, None or empty container stands
    alone: nothing else can have its path, and nothing can lie inside it.
    """
    problems: list[str] = []
    return _join(first, second, (), problems), problems


def _join(first: Node, second: Node, path: Path, problems: list[str]) -> Node:
    if not children_of(first) or not children_of(second):
        problems.append(_clash(first, second, path))
        return first
    if _kind(first) != _kind(second):
        problems.append(
            f"{show(path)}: {_say(first)} and {_say(second)} cannot be joined, for they are of "
            "different types"
        )
        return first
    steps = list(steps_of(first))
    children = list(children_of(first))
    for step, child in zip(steps_of(second), children_of(second), strict=True):
        if step in steps:
            at = steps.index(step)
            children[at] = _join(children[at], child, (*path, step), problems)
        else:
            steps.append(step)
            children.append(child)
    return _with(first, steps, children)


def _clash(first: Node, second: Node, path: Path) -> str:
    if not children_of(first) and not children_of(second):
        return f"{show(path)}: saved already"
    outer, inner = (first, second) if not children_of(first) else (second, first)
    inside = [show((*path, *below)) for below, _ in iterate_leaves(inner)][:3]
    return f"{show(path)}: {_say(outer)}, in which {', '.join(inside)} cannot lie"


def _say(node: Node) -> str:
    match node:
        case LeafNode(spec=spec):
            return f"a leaf ({spec.kind})"
        case NoneNode():
            return "None"
        case SequenceNode(kind=kind):
            what = kind
        case DictNode(type=kind):
            what = kind or "dict"
        case NamedTupleNode(type=kind) | CustomNode(type=kind):
            what = kind
    return f"a {what}" if children_of(node) else f"an empty {what}"


def _kind(node: Node) -> tuple[object, ...]:
    match node:
        case SequenceNode(kind=kind):
            return ("sequence", kind)
        case DictNode(type=kind):
            return ("dict", kind)
        case NamedTupleNode(type=kind, fields=fields):
            return ("namedtuple", kind, fields)
        case CustomNode(type=kind, style=style, indexed=indexed):
            return (style, kind, indexed)
    return ("end",)


def _with(node: Node, steps: Sequence[Step], children: Sequence[Node]) -> Node:
    if isinstance(node, DictNode | CustomNode):
        keys = tuple(step for step in steps if isinstance(step, Key))
        return dataclasses.replace(node, keys=keys, children=tuple(children))
    assert isinstance(node, SequenceNode | NamedTupleNode)
    return dataclasses.replace(node, children=tuple(children))


def shape_of(node: Node) -> Shape:
    """A saved tree as a caller's tree is described."""
    children = tuple(shape_of(child) for child in children_of(node))
    match node:
        case LeafNode():
            return Shape("leaf")
        case NoneNode():
            return Shape("none")
        case SequenceNode(kind=kind):
            return Shape(kind, None, steps_of(node), children)
        case NamedTupleNode(type=kind, fields=fields):
            return Shape("namedtuple", kind, fields, children)
        case DictNode(type=kind, keys=keys):
            return Shape("dict", kind, keys, children)
        case CustomNode(type=kind, keys=keys, style=style, indexed=indexed):
            return Shape(style, kind, keys, children, indexed)
