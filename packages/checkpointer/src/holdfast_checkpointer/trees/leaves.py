"""Leaves: which kind each one is, and what of it goes where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.sharding import sharding_to_json
from holdfast_metadata import LeafSpec, MetadataError, dtype_name, encode_scalar

_PYTHON: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    complex: "complex",
    str: "str",
    bytes: "bytes",
}


@dataclass(frozen=True)
class Leaf:
    """A leaf that can be saved.

    Attributes:
        spec: Its description, without a name and without what writing finds out.
        array: What goes into the array store (for a PRNG key its data); None if nothing.
        orbax_reason: Why Orbax cannot read it as what it is; None if it can.
    """

    spec: LeafSpec
    array: Any = None
    orbax_reason: str | None = None


class CannotBeSaved(Exception):
    """A leaf cannot be saved; the message says what it is and what would do."""


def classify(value: Any) -> Leaf:
    """Finds out what a leaf is.

    Raises:
        CannotBeSaved: It is none of the kinds that a checkpoint holds.
    """
    kind = _PYTHON.get(type(value))
    if kind is not None:
        return _python_scalar(kind, value)
    if isinstance(value, jax.core.Tracer):
        raise CannotBeSaved("a JAX tracer has no value yet; save outside of jit and grad")
    if isinstance(value, jax.Array):
        return _jax_array(value)
    if isinstance(value, np.generic):
        return _numpy_scalar(value)
    if type(value) in (np.ndarray, np.memmap):
        return _numpy_array(value)
    raise CannotBeSaved(_refusal(value))


def _refusal(value: Any) -> str:
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, jax.ShapeDtypeStruct):
        return "jax.ShapeDtypeStruct describes an array and has no values"
    if value is ...:
        return "a placeholder (...) is for loading"
    if isinstance(value, np.ndarray):
        return f"{name} would lose what it adds to an array; pass np.asarray of it"
    for base in (bool, int, float, str, bytes):
        if isinstance(value, base):
            return f"{name} would come back as plain {base.__name__}; pass {base.__name__} of it"
    if hasattr(value, "__dict__") and not callable(value):
        return (
            f"{name} is no leaf that can be saved; if it holds some, make it a PyTree with "
            "jax.tree_util.register_dataclass or register_pytree_with_keys"
        )
    return f"{name} is no leaf that can be saved"


def _python_scalar(kind: str, value: Any) -> Leaf:
    spec = LeafSpec(kind=kind, value=encode_scalar(kind, value))
    if kind == "bool":
        return Leaf(spec, np.asarray(value))
    if kind == "float":
        return Leaf(spec, np.asarray(value, np.float64))
    if kind == "int":
        for dtype in (np.int64, np.uint64):
            if np.iinfo(dtype).min <= value <= np.iinfo(dtype).max:
                return Leaf(spec, np.asarray(value, dtype))
        return Leaf(spec, orbax_reason="an int beyond 64 bits")
    if kind == "complex":
        return Leaf(spec, np.asarray(value, np.complex128), "a Python complex number")
    if kind == "bytes":
        return Leaf(spec, orbax_reason="bytes")
    return Leaf(spec)


def _numpy_scalar(value: np.generic) -> Leaf:
    array = np.asarray(value)
    spec = LeafSpec(
        kind="np.generic",
        dtype=_dtype(array.dtype),
        value=encode_scalar("np.generic", value),
    )
    return Leaf(spec, array)


def _numpy_array(value: np.ndarray[Any, Any]) -> Leaf:
    spec = LeafSpec(kind="np.ndarray", shape=value.shape, dtype=_dtype(value.dtype))
    return Leaf(spec, value, _zero_size(value.shape))


def _jax_array(value: jax.Array) -> Leaf:
    if value.is_deleted():
        raise CannotBeSaved("a jax.Array that was deleted or donated has no values any more")
    if jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(value)
        spec = LeafSpec(
            kind="prng_key",
            shape=value.shape,
            key_impl=str(jax.random.key_impl(value)),
            sharding=sharding_to_json(data.sharding),
        )
        return Leaf(spec, data, _zero_size(value.shape))
    spec = LeafSpec(
        kind="jax.Array",
        shape=value.shape,
        dtype=_dtype(value.dtype),
        weak_type=bool(value.weak_type),
        sharding=sharding_to_json(value.sharding),
    )
    return Leaf(spec, value, _zero_size(value.shape))


def _dtype(dtype: Any) -> str:
    try:
        return dtype_name(dtype)
    except MetadataError as error:
        raise CannotBeSaved(str(error)) from error


def _zero_size(shape: tuple[int, ...]) -> str | None:
    return f"an array of zero size {list(shape)}" if 0 in shape else None
