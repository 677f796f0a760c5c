"""Comparing a target with what was saved: everything that differs, in one error."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import ml_dtypes  # noqa: F401 - registers the dtypes that names refer to
import numpy as np

from holdfast_checkpointer.arrays.casting import may_become
from holdfast_checkpointer.errors import TreeMismatchError, UnsupportedTargetError
from holdfast_checkpointer.trees.asks import (
    PYTHON_TYPES,
    Ask,
    WithArgs,
    ask_of,
    is_key_dtype,
    is_restore_args,
)
from holdfast_checkpointer.trees.paths import show, text
from holdfast_checkpointer.trees.rebuild import rebuild
from holdfast_checkpointer.trees.structure import Path, Shape, flatten_like, take_apart
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
_PYTHON_KINDS = frozenset(PYTHON_TYPES.values())
_AS_SAVED = {"jax.Array": "jax", "np.ndarray": "numpy", "np.generic": "generic"}


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
        shape: The shape asked for; None for the saved one. Without `resize` only an array of
            Orbax's can still differ from it: its shape is known once the array is opened.
        layout: JAX's device-local layout asked for; None for the device's own.
        resize: Whether to pad or truncate to the shape.
        skipped: For `skip`: what comes back.
    """

    path: Path
    spec: LeafSpec | None
    form: str
    dtype: np.dtype[Any] | None = None
    sharding: Any = None
    python: str = ""
    shape: tuple[int, ...] | None = None
    layout: Any = None
    resize: bool = False
    skipped: Any = ...


@dataclass(frozen=True)
class Rules:
    """How strictly a target is compared with what was saved.

    Attributes:
        unsafe: Whether any dtype may be asked for.
        partial: Whether the target may leave leaves out.
        resize: Whether arrays may be padded and truncated.
        layouts: Whether the layouts of arrays in the target are asked for.
        orbax: Whether Orbax wrote it: then all keys are text and containers are dicts.
    """

    unsafe: bool = False
    partial: bool = False
    resize: bool = False
    layouts: bool = False
    orbax: bool = False


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


def take_target(tree: Any, restore_args: Any = None) -> Target:
    """Takes a target apart.

    Args:
        tree: The target; None for what `restore_args` ask for.
        restore_args: `RestoreArgs` in the structure of the tree, or None.

    Raises:
        UnsupportedLeafError: Its keys cannot be in a checkpoint.
        ValueError: `restore_args` has another structure, or other leaves.
    """
    shape, _ = take_apart(restore_args if tree is None else tree)
    leaves, treedef = jax.tree_util.tree_flatten(
        restore_args if tree is None else tree, is_leaf=lambda node: node is None
    )
    if restore_args is not None:
        leaves = _with_args(leaves, treedef, restore_args, given=tree is not None)
    return Target(shape, tuple(leaves), treedef)


def only_for(tree: Any, restore_args: Any) -> Any:
    """What `RestoreArgs` in the structure of a whole tree say of a part of it: dicts are cut."""
    if type(tree) is not dict or type(restore_args) is not dict:
        return restore_args
    return {key: only_for(tree[key], args) for key, args in restore_args.items() if key in tree}


def _with_args(leaves: list[Any], treedef: Any, restore_args: Any, *, given: bool) -> list[Any]:
    try:
        found = flatten_like(treedef, restore_args, is_restore_args)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"restore_args must have the structure of the item: {error}") from error
    for one in found:
        if one is not None and not is_restore_args(one):
            raise ValueError(f"restore_args must hold RestoreArgs, found {one!r:.60}")
    return [
        WithArgs(leaf if given else None, args) if given or args is not None else None
        for leaf, args in zip(leaves, found, strict=True)
    ]


def match(target: Target, saved: Node, rules: Rules) -> list[Want]:
    """Says for every leaf of the target what to read and what to make of it.

    Args:
        target: The caller's target.
        saved: The saved tree.
        rules: How strict to be.

    Raises:
        TreeMismatchError: Lists every missing, extra, misshapen and mistyped leaf; an
            `UnsupportedTargetError` if one says nothing about what to load.
    """
    matcher = _Matcher(iter(target.leaves), rules)
    matcher.visit(target.shape, saved, ())
    if matcher.problems:
        kind = UnsupportedTargetError if matcher.says_nothing else TreeMismatchError
        raise kind(matcher.problems)
    return matcher.wants


def want_as_saved(saved: Node) -> list[Want]:
    """What to read without a target: every leaf as it was."""
    return [Want(path, spec, "saved") for path, spec in iterate_leaves(saved)]


class _Matcher:
    def __init__(self, leaves: Iterator[Any], rules: Rules) -> None:
        self._leaves = leaves
        self._rules = rules
        self.wants: list[Want] = []
        self.problems: list[str] = []
        self.says_nothing = False

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
        if shape.children or not self._rules.orbax:
            self._skip(shape)
            self.problems.append(
                f"{show(path)}: the target has a {shape.kind}, the checkpoint None"
            )

    def _by_position(self, shape: Shape, node: Node) -> bool:
        """Tuples, lists and named tuples match each other; so do classes with positions.

        Two named tuples match by their fields: their order may have changed.
        """
        if isinstance(node, NamedTupleNode) and shape.kind == "namedtuple":
            return False
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
        exact = shape.kind == "dict" and isinstance(node, DictNode) and not self._rules.orbax
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
        what = "" if shape.kind in ("leaf", "none") else f" ({shape.kind} of {_count(leaves)})"
        self.problems.append(f"{show(path)}: in the target, not in the checkpoint{what}")

    def _extra(self, node: Node, path: Path) -> None:
        if self._rules.partial:
            return
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
        if type(value) is WithArgs and value.args is None:
            value = value.value
        if value is ... or (type(value) is WithArgs and _skips(value)):
            self.wants.append(Want(path, None, "skip", skipped=self._skipped(value)))
        elif isinstance(node, NoneNode):
            if value is None or _args_alone(value):
                self.wants.append(Want(path, None, "none"))
            else:
                self.problems.append(f"{show(path)}: the target has a leaf, the checkpoint None")
        elif not isinstance(node, LeafNode):
            inside = list(iterate_leaves(node))
            if not inside and _args_alone(value):  # there is nothing that they could be about
                self.wants.append(Want(path, None, "skip", skipped=rebuild(node, [])))
                return
            self.problems.append(
                f"{show(path)}: the target has {'None' if value is None else 'a leaf'}, the "
                f"checkpoint a container of {_count(inside)}"
            )
        else:
            want = self._want(value, node.spec, path)
            if isinstance(want, str):
                self.problems.append(f"{show(path)}: {want}")
            else:
                self.wants.append(want)

    def _want(self, value: Any, spec: LeafSpec, path: Path) -> Want | str:
        """What to make of a saved leaf, or in words why it cannot be."""
        ask = ask_of(value, layouts=self._rules.layouts)
        if isinstance(ask, str):
            self.says_nothing = True
            return ask
        if ask.form == "saved" and ask.dtype is None:
            return Want(path, spec, "saved")
        if ask.form == "python" or (ask.form == "saved" and spec.kind in _PYTHON_KINDS):
            return self._for_python(ask, spec, path)
        return self._for_array(ask, spec, path)

    def _for_python(self, ask: Ask, spec: LeafSpec, path: Path) -> Want | str:
        python = ask.python or spec.kind
        want = Want(path, spec, "python", python=python, dtype=ask.dtype)
        if python in ("str", "bytes") or spec.kind in ("str", "bytes", "prng_key"):
            fits = spec.kind == python
        elif spec.kind in _PYTHON_KINDS:
            fits = spec.kind == python or (spec.kind == "int" and python == "float")
        else:
            fits = spec.shape in ((), None)
        if not fits:
            return f"the target wants {python}, the checkpoint has {_say(spec)}"
        return want

    def _for_array(self, ask: Ask, spec: LeafSpec, path: Path) -> Want | str:
        if spec.kind in ("str", "bytes"):
            return f"the target wants an array, the checkpoint has {_say(spec)}"
        if spec.kind == "prng_key" or is_key_dtype(ask.dtype):
            return self._for_key(ask, spec, path)
        form = ask.form
        if form == "saved":
            form = _AS_SAVED.get(spec.kind, form)
        want = Want(
            path,
            spec,
            form,
            ask.dtype,
            ask.sharding,
            shape=ask.shape,
            layout=ask.layout,
            resize=ask.resize or self._rules.resize,
        )
        problem = shape_problem(() if spec.kind in _NUMBERS else spec.shape, want)
        if problem is None and ask.dtype is not None:
            problem = dtype_problem(spec_dtype(spec), ask.dtype, unsafe=self._rules.unsafe)
        return problem or want

    def _for_key(self, ask: Ask, spec: LeafSpec, path: Path) -> Want | str:
        """A key asks for keys; arguments may also name the shape and dtype of their data."""
        if spec.kind != "prng_key" or ask.form not in ("jax", "saved"):
            asked = ask.dtype if ask.dtype is not None else "a NumPy array"
            return f"the target has {asked}, the checkpoint {_say(spec)}"
        want = Want(path, spec, "jax", None, ask.sharding, layout=ask.layout)
        if ask.dtype is None and ask.shape is None:
            return want
        if not is_key_dtype(ask.dtype) and not (ask.from_args and _is_data(ask, spec)):
            return f"the target has {ask.dtype}, the checkpoint {_say(spec)}"
        if is_key_dtype(ask.dtype):
            if key_dtype(str(spec.key_impl)) != ask.dtype:
                return f"the target has {ask.dtype}, the checkpoint keys of {spec.key_impl}"
            want = dataclasses.replace(want, shape=ask.shape)
        return shape_problem(spec.shape, want) or want

    def _skipped(self, value: Any) -> Any:
        """What comes back for a placeholder: itself; in a partial load what the target has."""
        if self._rules.partial and type(value) is WithArgs and value.value is not None:
            return value.value
        return ...


def _skips(value: WithArgs) -> bool:
    """Whether arguments, or the target's leaf that they leave alone, skip the leaf."""
    ask = ask_of(value)
    return not isinstance(ask, str) and ask.form == "skip"


def _args_alone(value: Any) -> bool:
    """Whether these are arguments, and no target says what else to expect there."""
    return type(value) is WithArgs and value.value is None


def _is_data(ask: Ask, spec: LeafSpec) -> bool:
    """Whether an ask names the data of the saved keys, as Orbax's arguments do."""
    if ask.dtype != np.uint32:
        return False
    if ask.shape is None or spec.shape is None:  # Orbax's keys: their shape is not known yet
        return True
    return ask.shape[: len(spec.shape)] == spec.shape


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


def shape_problem(saved: tuple[int, ...] | None, want: Want) -> str | None:
    """Why the wanted shape cannot be had, in words; None if it can, or is not known yet."""
    if saved is None or want.shape is None or saved == want.shape:
        return None
    if want.resize and want.spec is not None and want.spec.kind != "prng_key":
        if len(saved) == len(want.shape):
            return None
        return (
            f"the target has shape {list(want.shape)}, the checkpoint {list(saved)}: padding and "
            "truncation keep the number of axes"
        )
    return f"the target has shape {list(want.shape)}, the checkpoint {list(saved)}"


def dtype_problem(
    saved: np.dtype[Any] | None, wanted: np.dtype[Any], *, unsafe: bool
) -> str | None:
    """Why a dtype cannot be asked for, in words; None if it can."""
    if unsafe or saved is None or may_become(saved, wanted):
        return None
    return f"the target has dtype {wanted}, the checkpoint {saved}; cast='unsafe' would convert"


def _exact(step: Step) -> Any:
    return (step.kind, step.value) if isinstance(step, Key) else step


def _count(leaves: Sequence[Any]) -> str:
    return f"{len(leaves)} leaf" if len(leaves) == 1 else f"{len(leaves)} leaves"


def _say(spec: LeafSpec) -> str:
    if spec.kind == "prng_key":
        return f"PRNG keys ({spec.key_impl}){list(spec.shape or ())}"
    if spec.dtype is not None and spec.shape is not None:
        return f"{spec.kind} {spec.dtype}{list(spec.shape)}"
    return spec.kind
