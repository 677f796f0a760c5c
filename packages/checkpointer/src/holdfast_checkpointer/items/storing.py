"""How each leaf is to be stored: the call's options, the context's, and the leaf's own."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.args import SaveArgs
from holdfast_checkpointer.arrays.casting import (
    convert,
    dtype_kind,
    loss_problem,
    may_become,
)
from holdfast_checkpointer.arrays.options import (
    ArraySaveOptions,
    StorageOptions,
    storage_problem,
)
from holdfast_checkpointer.arrays.snapshot import AS_IT_IS, StorageRule
from holdfast_checkpointer.errors import StorageOptionsError
from holdfast_checkpointer.trees.leaves import Leaf
from holdfast_checkpointer.trees.paths import show
from holdfast_checkpointer.trees.structure import Path, flatten_like
from holdfast_metadata import dtype_from_name, dtype_name, encode_scalar

_log = logging.getLogger(__name__)
_CAST = ("jax.Array", "np.ndarray", "np.generic")


@dataclass(frozen=True)
class StorageRequest:
    """What the caller said about storage.

    Attributes:
        options: The context's; every leaf's.
        save_args: A tree of `SaveArgs` in the item's structure; None if there is none.
    """

    options: ArraySaveOptions
    save_args: Any = None

    @property
    def says_nothing(self) -> bool:
        """Whether every leaf is stored as it is."""
        options = self.options
        return (
            self.save_args is None
            and options.scoped_storage_options_creator is None
            and options.storage_options == StorageOptions()
        )


def apply(
    request: StorageRequest, tree: Any, paths: Sequence[Path], leaves: Sequence[Leaf]
) -> tuple[list[Leaf], list[StorageRule]]:
    """The leaves as they will be stored, and the rule for each; no I/O, no copies of arrays.

    Raises:
        StorageOptionsError: Lists every leaf that cannot be stored as asked.
        ValueError: `save_args` has another structure than the item.
    """
    found, rules, problems = [], [], []
    for path, leaf, asked in zip(paths, leaves, _asked(request, tree, len(leaves)), strict=True):
        result = _one(request.options.storage_options, asked, leaf)
        if isinstance(result, str):
            problems.append(f"{show(path)}: {result}")
            continue
        found.append(result[0])
        rules.append(result[1])
    if problems:
        raise StorageOptionsError(problems)
    return found, rules


def _asked(request: StorageRequest, tree: Any, count: int) -> Iterator[list[Any]]:
    """What is said about each leaf alone, the strongest word first."""
    by_args = _save_args(request.save_args, tree) if request.save_args is not None else None
    creator = request.options.scoped_storage_options_creator
    scoped = None
    if creator is not None:
        scoped = [
            _called(creator, keypath, value)
            for keypath, value in jax.tree_util.tree_flatten_with_path(tree)[0]
        ]
    for index in range(count):
        yield [column[index] for column in (by_args, scoped) if column is not None]


def _called(creator: Any, keypath: Any, value: Any) -> Any:
    try:
        return creator(keypath, value)
    except Exception as error:
        where = jax.tree_util.keystr(keypath)
        error.add_note(f"raised by scoped_storage_options_creator for the leaf {where}")
        raise


def _save_args(save_args: Any, tree: Any) -> list[Any]:
    try:
        structure: Any = jax.tree_util.tree_structure(tree)
        found = flatten_like(structure, save_args, _is_save_args)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"save_args must have the structure of the item: {error}") from error
    if any(getattr(one, "aggregate", False) for one in found):
        _log.warning("SaveArgs(aggregate=True) changes nothing: arrays are one database anyway")
    return list(found)


def _one(
    widest: StorageOptions, asked: Sequence[Any], leaf: Leaf
) -> tuple[Leaf, StorageRule] | str:
    dtype, chunk, axes, own_axes = None, None, None, False
    for one in asked:
        if one is None:
            continue
        if not _is_save_args(one):
            return f"expected SaveArgs or StorageOptions, got {type(one).__name__}"
        problem = storage_problem(one.dtype, one.chunk_byte_size, one.shard_axes)
        if problem:
            return problem
        dtype = one.dtype if dtype is None else dtype
        chunk = one.chunk_byte_size if chunk is None else chunk
        if not axes and one.shard_axes:
            axes, own_axes = tuple(one.shard_axes), True
    dtype = widest.dtype if dtype is None else dtype
    chunk = widest.chunk_byte_size if chunk is None else chunk
    axes = tuple(widest.shard_axes or ()) if axes is None else axes
    return _ruled(
        leaf, None if dtype is None else dtype_from_name(dtype_name(dtype)), chunk, axes, own_axes
    )


def _is_save_args(value: Any) -> bool:
    """Whether it is `SaveArgs`, `StorageOptions` or Orbax's object of the same meaning."""
    return isinstance(value, StorageOptions | SaveArgs) or all(
        hasattr(value, name) for name in ("dtype", "chunk_byte_size", "shard_axes")
    )


def _ruled(
    leaf: Leaf, dtype: np.dtype[Any] | None, chunk: int | None, axes: tuple[int, ...], own: bool
) -> tuple[Leaf, StorageRule] | str:
    if leaf.array is None:
        return leaf, AS_IT_IS
    rank = len(leaf.spec.shape or ())
    if own and any(axis >= rank for axis in axes):
        return f"shard_axes={axes} names axes that it does not have: it has {rank}"
    if leaf.spec.kind not in _CAST:  # Python numbers are exact, key data is no number
        dtype = None
    made = leaf if dtype is None else _cast(leaf, dtype)
    if isinstance(made, str):
        return made
    stored = np.dtype(leaf.array.dtype) if made is leaf or dtype is None else dtype
    if chunk is not None and chunk < stored.itemsize and leaf.spec.shape is not None:
        return f"chunk_byte_size={chunk} is less than an element, {stored.itemsize} bytes"
    cast = stored if made is not leaf and leaf.spec.kind != "np.generic" else None
    return made, StorageRule(cast, chunk, tuple(axis for axis in axes if axis < rank))


def _cast(leaf: Leaf, dtype: np.dtype[Any]) -> Leaf | str:
    """The leaf under another dtype: described so, and converted when it is written."""
    saved = dtype_from_name(str(leaf.spec.dtype))
    if saved == dtype:
        return leaf
    if not may_become(saved, dtype):
        return f"{saved} is not stored as {dtype}: only a dtype of its kind, or float for int, is"
    if dtype_kind(saved) == "int":
        problem = loss_problem(np.asarray(leaf.array), dtype)
        if problem:
            return f"{saved} is not stored as {dtype}: it {problem}"
    spec = dataclasses.replace(leaf.spec, dtype=dtype_name(dtype), weak_type=False)
    if spec.kind != "np.generic":
        return dataclasses.replace(leaf, spec=spec)
    array = convert(np.asarray(leaf.array), dtype)
    spec = dataclasses.replace(spec, value=encode_scalar("np.generic", array[()]))
    return dataclasses.replace(leaf, spec=spec, array=array)
