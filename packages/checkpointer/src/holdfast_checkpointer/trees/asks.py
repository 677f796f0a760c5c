"""What a leaf of a target asks for, whatever was saved."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.layout import Format

from holdfast_checkpointer.args import ArrayRestoreArgs, RestoreArgs
from holdfast_checkpointer.items.metadata import ScalarMetadata

PYTHON_TYPES: dict[type, str] = {
    int: "int",
    float: "float",
    bool: "bool",
    complex: "complex",
    str: "str",
    bytes: "bytes",
}
ELLIPSIS = type(...)


class Ask(NamedTuple):
    """What one leaf is to be.

    Attributes:
        form: `jax`, `numpy`, `generic`, `python` (as `python` says), `saved` (as it was) or
            `skip`.
        dtype: The dtype to make; None for the saved one. JAX's own for PRNG keys.
        shape: The shape to make; None for the saved one.
        sharding: Where to; None for where it was.
        layout: JAX's device-local layout; None for the device's own.
        python: For `python`: the kind of scalar.
        resize: Whether to pad or truncate to the shape.
        from_args: Whether `RestoreArgs` had a word in it.
    """

    form: str
    dtype: Any = None
    shape: tuple[int, ...] | None = None
    sharding: Any = None
    layout: Any = None
    python: str = ""
    resize: bool = False
    from_args: bool = False


_SAVED = Ask("saved")
_SKIP = Ask("skip")


class WithArgs(NamedTuple):
    """A leaf of a target, and the `RestoreArgs` given for it; a leaf to JAX, not a node.

    Attributes:
        value: The target's leaf; None without a target.
        args: Its arguments; None if nothing was said.
    """

    value: Any
    args: Any


def ask_of(value: Any, *, layouts: bool = False) -> Ask | str:
    """What a leaf of a target asks for, or in words why it asks for nothing.

    Args:
        value: The leaf; with `WithArgs`, the arguments win where they say something.
        layouts: Take the device-local layouts of arrays, too.
    """
    if type(value) is WithArgs:
        if value.value is ...:
            return _SKIP  # whatever the arguments say
        ask: Ask | str = _SAVED if value.value is None else ask_of(value.value, layouts=layouts)
        return ask if value.args is None else _under_args(ask, value.args)
    if value is None or isinstance(value, ScalarMetadata):
        return _SAVED
    if value is ...:
        return _SKIP
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return _for_array(value, layouts)
    if isinstance(value, type):
        return _for_type(value)
    python = PYTHON_TYPES.get(type(value))
    if python is not None:
        return Ask("python", python=python)
    return f"a target leaf of type {type(value).__name__} says nothing about what to load"


def _for_array(value: Any, layouts: bool) -> Ask:
    shape = tuple(value.shape)
    if isinstance(value, np.generic):
        return Ask("generic", np.dtype(value.dtype), shape)
    if isinstance(value, np.ndarray) or not hasattr(value, "sharding"):
        return Ask("numpy", np.dtype(value.dtype), shape)
    layout = None
    if not is_key_dtype(value.dtype) and (layouts or not isinstance(value, jax.Array)):
        layout = getattr(getattr(value, "format", None), "layout", None)
    return Ask("jax", _dtype(value.dtype), shape, value.sharding, layout)


def _for_type(kind: Any) -> Ask | str:
    if kind in PYTHON_TYPES:
        return Ask("python", python=PYTHON_TYPES[kind])
    if kind is np.ndarray:
        return Ask("numpy")
    if kind is jax.ShapeDtypeStruct or issubclass(kind, jax.Array):  # also type(array)
        return Ask("jax")
    if kind is ELLIPSIS:
        return _SKIP
    if issubclass(kind, np.generic):
        try:
            return Ask("generic", np.dtype(kind), ())
        except TypeError:  # an abstract one, such as np.number
            return Ask("generic", None, ())
    return f"the type {kind.__name__} is no kind of leaf"


def _under_args(ask: Ask | str, args: Any) -> Ask | str:
    """An ask under `RestoreArgs`, whose fields win where they say something."""
    try:
        _dtype(args.dtype)
    except TypeError:
        return f"the arguments ask for the dtype {args.dtype!r:.60}, which is none"
    wanted = args.restore_type
    if isinstance(args, ArrayRestoreArgs) or hasattr(args, "global_shape"):
        return _under_array_args(ask, args)
    if wanted is not None:
        ask = _retyped(ask, wanted)
    if isinstance(ask, str):
        return ask
    return ask._replace(
        dtype=ask.dtype if args.dtype is None else _dtype(args.dtype), from_args=True
    )


def _retyped(ask: Ask | str, wanted: Any) -> Ask | str:
    """The type of the arguments, with what the target says that still applies."""
    if not isinstance(wanted, type):
        return f"restore_type must be a type, got {wanted!r:.60}"
    typed = _for_type(wanted)
    if isinstance(ask, str) or isinstance(typed, str) or typed.form not in ("numpy", "jax"):
        return typed
    return ask._replace(form=typed.form) if ask.form in ("numpy", "jax") else typed


def _under_array_args(ask: Ask | str, args: Any) -> Ask | str:
    wanted = jax.Array if args.restore_type is None else args.restore_type
    found = _retyped(ask, wanted)
    if isinstance(found, str):
        return found
    if found.form not in ("jax", "numpy"):
        return found._replace(dtype=_dtype(args.dtype)) if args.dtype is not None else found
    sharding: Any = args.sharding
    layout: Any = None
    if sharding is None and args.mesh is not None:
        sharding = jax.sharding.NamedSharding(args.mesh, args.mesh_axes)
    if isinstance(sharding, Format):
        layout, sharding = sharding.layout, sharding.sharding
    if hasattr(sharding, "to_jax_sharding"):  # Orbax's description of one
        sharding = sharding.to_jax_sharding()
    shape = args.global_shape if args.global_shape is not None else args.shape
    return found._replace(
        dtype=found.dtype if args.dtype is None else _dtype(args.dtype),
        shape=found.shape if shape is None else tuple(shape),
        sharding=found.sharding if sharding is None else sharding,
        layout=found.layout if layout is None else layout,
        resize=not args.strict,
        from_args=True,
    )


def _dtype(dtype: Any) -> Any:
    return dtype if isinstance(dtype, np.dtype) or is_key_dtype(dtype) else np.dtype(dtype)


def is_key_dtype(dtype: Any) -> bool:
    """Whether it is the dtype of typed PRNG keys."""
    if dtype is None or isinstance(dtype, np.dtype):
        return False
    return bool(jax.numpy.issubdtype(dtype, jax.dtypes.prng_key))


def is_restore_args(value: Any) -> bool:
    """Whether it is `RestoreArgs`, or Orbax's object of the same meaning."""
    return isinstance(value, RestoreArgs) or (
        hasattr(value, "restore_type") and hasattr(value, "dtype")
    )
