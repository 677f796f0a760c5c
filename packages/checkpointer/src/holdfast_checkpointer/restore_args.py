"""Restore arguments from a target, for code that is written against Orbax's v0 handlers."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.args import ArrayRestoreArgs, RestoreArgs
from holdfast_checkpointer.items.metadata import ArrayMetadata, NumpyMetadata, ScalarMetadata
from holdfast_checkpointer.metadata import CheckpointMetadata

_SCALARS = (int, float, bool, complex, str, bytes, np.generic)


def construct_restore_args(
    target: Any,
    sharding_tree: Any = None,
    set_global_shape: bool = True,
    support_layout: bool = False,
    strict: bool = True,
) -> Any:
    """Makes the `restore_args` of `args.PyTreeRestore` that ask for what a target is.

    A `jax.Array` gives `ArrayRestoreArgs`; so does a `jax.ShapeDtypeStruct` or metadata of a
    `jax.Array` that has a sharding, and one without gives a NumPy array. NumPy arrays, numbers
    and text are asked for as what they are, `...` is skipped. PRNG keys are asked for by the
    dtype and sharding of their data, with no shape.

    Args:
        target: A PyTree of arrays, `jax.ShapeDtypeStruct`, metadata, numbers, text and `...`;
            or the result of `metadata`.
        sharding_tree: Shardings in the structure of the target, which win over its own; what
            stands at a leaf that is no array is not used.
        set_global_shape: Ask for the target's shapes, too; a shape that was not saved is then
            an error, or with `strict=False` padded or truncated to.
        support_layout: Take the device-local layouts of the target, too.
        strict: See `args.ArrayRestoreArgs`.

    Returns:
        A tree of `args.RestoreArgs` in the structure of the target.

    Raises:
        ValueError: A leaf is none of these, or `sharding_tree` has another structure; the
            message names the leaf.

    Examples:
        >>> import holdfast as hf, jax.numpy as jnp, numpy as np
        >>> hf.checkpoint_utils.construct_restore_args({"n": np.zeros(2), "i": 3})
        {'i': RestoreArgs(restore_type=<class 'int'>, dtype=None), 'n': RestoreArgs(restore_type=<class 'numpy.ndarray'>, dtype=dtype('float64'))}
    """  # noqa: E501 - the output of an example is one line
    if isinstance(target, CheckpointMetadata):
        target = target.metadata
    structure: Any
    leaves, structure = jax.tree_util.tree_flatten_with_path(target)
    shardings = [_sharding(leaf, support_layout) for _, leaf in leaves]
    if sharding_tree is not None:
        try:
            shardings = structure.flatten_up_to(sharding_tree)
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"sharding_tree must have the structure of the target: {error}"
            ) from error
    made = []
    for (path, leaf), sharding in zip(leaves, shardings, strict=True):
        args = _args(leaf, sharding, set_global_shape=set_global_shape, strict=strict)
        if args is None:
            raise ValueError(
                f"{jax.tree_util.keystr(path)}: no restore arguments for a "
                f"{type(leaf).__name__}; accepted are arrays, jax.ShapeDtypeStruct, metadata of "
                "leaves, numbers, text, bytes and ..."
            )
        made.append(args)
    return jax.tree_util.tree_unflatten(structure, made)


def _sharding(leaf: Any, support_layout: bool) -> Any:
    if support_layout and isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        found = getattr(leaf, "format", None)
        if found is not None and found.layout is not None and not _is_key(leaf):
            return found
    return getattr(leaf, "sharding", None)


def _args(leaf: Any, sharding: Any, *, set_global_shape: bool, strict: bool) -> RestoreArgs | None:
    if leaf is ...:
        return RestoreArgs(restore_type=type(...))
    if isinstance(leaf, ScalarMetadata):
        kind = type(np.zeros((), leaf.dtype).item())
        return RestoreArgs(restore_type=kind, dtype=leaf.dtype)
    if isinstance(leaf, np.ndarray | NumpyMetadata):
        return RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    if isinstance(leaf, _SCALARS):
        return RestoreArgs(restore_type=type(leaf))
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | ArrayMetadata):
        return None
    if _is_key(leaf):
        return ArrayRestoreArgs(sharding=sharding, dtype=np.dtype(np.uint32), strict=strict)
    if sharding is None:
        return RestoreArgs(restore_type=np.ndarray, dtype=leaf.dtype)
    return ArrayRestoreArgs(
        dtype=leaf.dtype,
        sharding=sharding,
        global_shape=tuple(leaf.shape) if set_global_shape else None,
        strict=strict,
    )


def _is_key(leaf: Any) -> bool:
    return bool(jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key))
