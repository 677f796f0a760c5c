"""Comparing a target with what was saved: everything that differs, in one error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes  # noqa: F401 - registers the dtypes that names refer to
import numpy as np

from holdfast_checkpointer.errors import TreeMismatchError
from holdfast_checkpointer.items.metadata import ScalarMetadata
from holdfast_checkpointer.trees.paths import show, text
from holdfast_checkpointer.trees.structure import Path, Shape, take_apart
from holdfast_metadata import (
    CustomNode,
    DictNode,
    Key,
    LeafNode,
    LeafSpec,
    NamedTupleNode,
    Node,
    NoneNode,
    SequenceNode,
    dtype_from_name,
)
from holdfast_metadata.tree import Step, children_of, iterate_leaves, steps_of

_NUMBERS = ("int", "float", "bool", "complex", "np.generic", "scalar")
_PYTHON_TYPES: dict[type, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    complex: "complex",
    str: "str",
    bytes: "bytes",
}


@dataclass(frozen=True)
class Want:
    """What one leaf of the result is to be.

    Attributes:
        path: Where it is.
        spec: The saved leaf; None where nothing is read.
        form: `jax`, `numpy`, `generic`, `python` (as `python` says), `saved` (as it was),
            `skip` (the placeholder) or `none`.
        dtype: The dtype asked for; None for the saved one.
        sharding: The sharding asked for; None for the saved one.
        python: For `python`: the kind of scalar.
        shape: The shape asked for; None for the saved one. Only an array of Orbax's can
            still differ from it: its shape is known once the array is opened.
    """

    path: Path
    spec: LeafSpec | None
    form: str
    dtype: np.dtype[Any] | None = None
    sharding: Any = None
    python: str = ""
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Target:
    """A caller's target, taken apart in the caller's thread.

    Attributes:
        shape: Its nodes.
        leaves: Its leaves and Nones, in order, with their paths.
        treedef: How to put the result together; Nones are leaves in it.
    """

    shape: Shape
    leaves: tuple[Any, ...]
    treedef: Any


def take_target(tree: Any) -> Target:
    """Takes a target apart.

    Raises:
        UnsupportedLeafError: Its keys cannot be in a checkpoint.
    """
    shape, _ = take_apart(tree)
    leaves, treedef = jax.tree_util.tree_flatten(tree, is_leaf=lambda node: node is None)
    return Target(shape, tuple(leaves), treedef)


def match(target: Target, saved: Node, *, cast: str = "safe", orbax: bool = False) -> list[Want]:
    """Says for every leaf of the target what to read and what to make of it.

    Args:
        target: The caller's target.
        saved: The saved tree.
        cast: "safe" allows a dtype of the same kind, and float for int; "unsafe" any.
        orbax: Whether Orbax wrote it: then all keys are text and containers are dicts.

    Raises:
        TreeMismatchError: Lists every missing, extra, misshapen and mistyped leaf.
    """
    matcher = _Matcher(iter(target.leaves), unsafe=cast == "unsafe", orbax=orbax)
    matcher.visit(target.shape, saved, ())
    if matcher.problems:
        raise TreeMismatchError(matcher.problems)
    return matcher.wants


def want_as_saved(saved: Node) -> list[Want]:
    """What to read without a target: every leaf as it was."""
    return [Want(path, spec, "saved") for path, spec in iterate_leaves(saved)]


class _Matcher:
    def __init__(self, leaves: Iterator[Any], *, unsafe: bool, orbax: bool) -> None:
        self._leaves = leaves
        self._unsafe = unsafe
        self._orbax = orbax
        self.wants: list[Want] = []
        self.problems: list[str] = []

    def visit(self, shape: Shape, node: Node, path: Path) -> None:
        if shape.kind in ("leaf", "none"):
            self._leaf(next(self._leaves), node, path)
        elif isinstance(node, LeafNode):
            self._skip(shape)
            self.problems.append(
                f"{show(path)}: the target has a {shape.kind}, the checkpoint {_say(node.spec)}"
            )
        elif isinstance(node, NoneNode):
            self._over_none(shape, path)
        elif self._by_position(shape, node):
            self._positions(shape, node, path)
        else:
            self._keys(shape, node, path)

    def _over_none(self, shape: Shape, path: Path) -> None:
        """Orbax stores an empty named tuple, such as optax's EmptyState, as None."""
        if shape.children or not self._orbax:
            self._skip(shape)
            self.problems.append(
                f"{show(path)}: the target has a {shape.kind}, the checkpoint None"
            )

    def _by_position(self, shape: Shape, node: Node) -> bool:
        """Tuples, lists and named tuples match each other; so do classes with positions."""
        ordered = isinstance(node, SequenceNode | NamedTupleNode) or (
            isinstance(node, CustomNode) and node.indexed
        )
        return ordered and (shape.kind in ("list", "tuple", "namedtuple") or shape.indexed)

    def _positions(self, shape: Shape, node: Node, path: Path) -> None:
        children = children_of(node)
        for index, child in enumerate(shape.children):
            step = shape.steps[index]
            if index < len(children):
                self.visit(child, children[index], (*path, step))
            else:
                self._missing(child, (*path, step))
        for step, left in list(zip(steps_of(node), children, strict=True))[len(shape.children) :]:
            self._extra(left, (*path, step))

    def _keys(self, shape: Shape, node: Node, path: Path) -> None:
        exact = shape.kind == "dict" and isinstance(node, DictNode) and not self._orbax
        name = _exact if exact else text
        saved = {name(s): (s, c) for s, c in zip(steps_of(node), children_of(node), strict=True)}
        for step, child in zip(shape.steps, shape.children, strict=True):
            found = saved.pop(name(step), None)
            if found is None:
                self._missing(child, (*path, step))
            else:
                self.visit(child, found[1], (*path, step))
        for step, left in saved.values():
            self._extra(left, (*path, step))

    def _skip(self, shape: Shape) -> list[Any]:
        """Passes over the target's leaves below a node that has no counterpart."""
        if shape.kind in ("leaf", "none"):
            return [next(self._leaves)]
        return [leaf for child in shape.children for leaf in self._skip(child)]

    def _missing(self, shape: Shape, path: Path) -> None:
        leaves = self._skip(shape)
        what = "" if shape.kind in ("leaf", "none") else f" ({shape.kind} of {len(leaves)} leaves)"
        self.problems.append(f"{show(path)}: in the target, not in the checkpoint{what}")

    def _extra(self, node: Node, path: Path) -> None:
        found = list(iterate_leaves(node, path))
        for where, spec in found:
            self.problems.append(
                f"{show(where)}: in the checkpoint ({_say(spec)}), not in the target"
            )
        if not found:
            self.problems.append(
                f"{show(path)}: an empty container of the checkpoint, not in the target"
            )

    def _leaf(self, value: Any, node: Node, path: Path) -> None:
        if value is ...:
            self.wants.append(Want(path, None, "skip"))
        elif isinstance(node, NoneNode):
            if value is None:
                self.wants.append(Want(path, None, "none"))
            else:
                self.problems.append(f"{show(path)}: the target has a leaf, the checkpoint None")
        elif not isinstance(node, LeafNode):
            count = len(list(iterate_leaves(node)))
            self.problems.append(
                f"{show(path)}: the target has {'None' if value is None else 'a leaf'}, the "
                f"checkpoint a container of {count} leaves"
            )
        else:
            want = self._want(value, node.spec, path)
            if isinstance(want, str):
                self.problems.append(f"{show(path)}: {want}")
            else:
                self.wants.append(want)

    def _want(self, value: Any, spec: LeafSpec, path: Path) -> Want | str:
        """What to make of a saved leaf, or in words why it cannot be."""
        if value is None or isinstance(value, ScalarMetadata):
            return Want(path, spec, "saved")
        if isinstance(value, type):
            return self._for_type(value, spec, path)
        python = _PYTHON_TYPES.get(type(value))
        if python is not None:
            return self._for_python(python, spec, path)
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            return self._for_array(value, spec, path)
        return f"a target leaf of type {type(value).__name__} says nothing about what to load"

    def _for_type(self, kind: type, spec: LeafSpec, path: Path) -> Want | str:
        if kind in _PYTHON_TYPES:
            return self._for_python(_PYTHON_TYPES[kind], spec, path)
        if kind is np.ndarray:
            return Want(path, spec, "numpy")
        if kind in (jax.Array, jax.ShapeDtypeStruct):
            return Want(path, spec, "jax")
        return f"the type {kind.__name__} is no kind of leaf"

    def _for_python(self, python: str, spec: LeafSpec, path: Path) -> Want | str:
        if spec.kind == python or (spec.kind == "int" and python == "float"):
            return Want(path, spec, "python", python=python)
        if python in ("str", "bytes"):
            return f"the target wants {python}, the checkpoint has {_say(spec)}"
        single = spec.kind in ("scalar", "np.generic") or spec.shape in ((), None)
        if single and spec.kind not in ("str", "bytes", "prng_key", *_PYTHON_TYPES.values()):
            return Want(path, spec, "python", python=python)
        return f"the target wants {python}, the checkpoint has {_say(spec)}"

    def _for_array(self, value: Any, spec: LeafSpec, path: Path) -> Want | str:
        shape = tuple(value.shape)
        if spec.kind in ("str", "bytes"):
            return f"the target wants an array, the checkpoint has {_say(spec)}"
        wants_key = bool(jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key))
        if wants_key != (spec.kind == "prng_key"):
            return f"the target has {value.dtype}, the checkpoint {_say(spec)}"
        saved_shape = () if spec.kind in _NUMBERS else spec.shape
        problem = shape_problem(saved_shape, shape)
        if problem:
            return problem
        if wants_key:
            return self._for_key(value, spec, path)
        problem = dtype_problem(spec_dtype(spec), np.dtype(value.dtype), unsafe=self._unsafe)
        if problem:
            return problem
        if isinstance(value, np.generic):
            form = "generic"
        elif isinstance(value, np.ndarray) or not hasattr(value, "sharding"):
            form = "numpy"
        else:
            form = "jax"
        sharding = getattr(value, "sharding", None)
        return Want(path, spec, form, np.dtype(value.dtype), sharding, shape=shape)

    def _for_key(self, value: Any, spec: LeafSpec, path: Path) -> Want | str:
        if key_dtype(str(spec.key_impl)) != value.dtype:
            return f"the target has {value.dtype}, the checkpoint keys of {spec.key_impl}"
        sharding = getattr(value, "sharding", None)
        return Want(path, spec, "jax", None, sharding, shape=tuple(value.shape))


def key_dtype(impl: str) -> Any:
    """The dtype of typed keys of an implementation."""
    return jax.eval_shape(lambda: jax.random.key(0, impl=impl)).dtype


def spec_dtype(spec: LeafSpec) -> np.dtype[Any] | None:
    """The dtype of a saved leaf, if known."""
    if spec.dtype is not None:
        return dtype_from_name(spec.dtype)
    python = {"int": np.int64, "float": np.float64, "bool": np.bool_, "complex": np.complex128}
    found = python.get(spec.kind)
    return None if found is None else np.dtype(found)


def shape_problem(saved: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> str | None:
    """Why a shape cannot be asked for, in words; None if it can, or is not known yet."""
    if saved is None or wanted is None or saved == wanted:
        return None
    return f"the target has shape {list(wanted)}, the checkpoint {list(saved)}"


def dtype_problem(
    saved: np.dtype[Any] | None, wanted: np.dtype[Any], *, unsafe: bool
) -> str | None:
    """Why a dtype cannot be asked for, in words; None if it can."""
    if unsafe or saved is None or saved == wanted:
        return None
    a, b = dtype_kind(saved), dtype_kind(wanted)
    if a == b or (a == "int" and b == "float"):
        return None
    return f"the target has dtype {wanted}, the checkpoint {saved}; cast='unsafe' would convert"


def dtype_kind(dtype: np.dtype[Any]) -> str:
    """bool, int, float or complex."""
    if dtype == np.bool_:
        return "bool"
    for kind, parent in (("int", np.integer), ("float", np.floating)):
        if jax.numpy.issubdtype(dtype, parent):
            return kind
    return "complex"


def _exact(step: Step) -> Any:
    return (step.kind, step.value) if isinstance(step, Key) else step


def _say(spec: LeafSpec) -> str:
    if spec.kind == "prng_key":
        return f"PRNG keys ({spec.key_impl}){list(spec.shape or ())}"
    if spec.dtype is not None and spec.shape is not None:
        return f"{spec.kind} {spec.dtype}{list(spec.shape)}"
    return spec.kind
