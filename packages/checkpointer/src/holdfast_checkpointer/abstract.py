"""Descriptions of arrays without the arrays: what a target of a load is made of."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np


def to_shape_dtype_struct(arr: Any, dtype: Any = None, scalar_dtype: Any = None) -> Any:
    """The description of an array; of a number, the number itself.

    Args:
        arr: A jax.Array, np.ndarray, `jax.ShapeDtypeStruct`, the metadata of an array, or
            anything with `shape` and `dtype`, and perhaps `sharding`; or a number.
        dtype: The dtype of the result, if another.
        scalar_dtype: What to make of a number: `int`, `float`.

    Raises:
        ValueError: It is neither an array nor a number.

    Examples:
        >>> to_shape_dtype_struct(np.zeros((2, 3), np.float32))
        ShapeDtypeStruct(shape=(2, 3), dtype=float32)
    """
    if isinstance(arr, int | float) and not hasattr(arr, "shape"):
        return arr if scalar_dtype is None else scalar_dtype(arr)
    shape = getattr(arr, "shape", getattr(arr, "global_shape", None))
    found = getattr(arr, "dtype", None)
    if shape is None or found is None:
        raise ValueError(
            f"{type(arr).__name__} has no shape and dtype; accepted are arrays, their "
            "descriptions, and numbers"
        )
    sharding = getattr(arr, "sharding", None)
    if isinstance(arr, np.ndarray | np.generic):
        sharding = None
    wanted = found if dtype is None else dtype
    return jax.ShapeDtypeStruct(tuple(shape), wanted, sharding=sharding)  # type: ignore[no-untyped-call]
