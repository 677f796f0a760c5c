"""Other dtypes than an array has: which may be asked for, and making them."""

from __future__ import annotations

from typing import Any

import jax
import ml_dtypes
import numpy as np


def dtype_kind(dtype: np.dtype[Any]) -> str:
    """bool, int, float or complex."""
    if dtype == np.bool_:
        return "bool"
    for kind, parent in (("int", np.integer), ("float", np.floating)):
        if jax.numpy.issubdtype(dtype, parent):
            return kind
    return "complex"


def may_become(saved: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether a dtype may be asked for without saying `unsafe`: same kind, or int to float."""
    if saved == wanted:
        return True
    a, b = dtype_kind(saved), dtype_kind(wanted)
    return a == b or (a == "int" and b == "float")


def is_narrowing(saved: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Whether it is from an integer type to one that does not hold all its values."""
    if saved == wanted or dtype_kind(saved) != "int" or dtype_kind(wanted) != "int":
        return False
    a, b = _limits(saved), _limits(wanted)
    return bool(int(a.min) < int(b.min) or int(a.max) > int(b.max))


def _limits(dtype: np.dtype[Any]) -> Any:
    return ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]


def overflow_problem(array: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> str | None:
    """Why integers would come out as others, in words; None if they would not."""
    if array.size == 0 or not is_narrowing(array.dtype, wanted):
        return None
    wide = array if array.dtype.kind in "iu" else array.astype(np.int64)  # int4 has no minimum
    low, high = int(wide.min()), int(wide.max())
    info = _limits(wanted)
    if int(info.min) <= low and high <= int(info.max):
        return None
    found = low if low < int(info.min) else high
    return f"holds {found}, which {wanted} cannot hold"


def loss_problem(array: np.ndarray[Any, Any], wanted: np.dtype[Any]) -> str | None:
    """Why integers would not all be there in another dtype, in words; None if they would.

    Counters, raw keys and indices are integers: rounded to a float they are lost.
    """
    if array.size == 0 or dtype_kind(array.dtype) != "int":
        return None
    if dtype_kind(wanted) == "int":
        return overflow_problem(array, wanted)
    wide = array if array.dtype.kind in "iu" else array.astype(np.int64)
    with np.errstate(all="ignore"):
        floats = convert(array, wanted).astype(np.float64)
        kept = np.isfinite(floats) & (floats.astype(wide.dtype) == wide)
    if kept.all():
        return None
    return f"holds {wide[~kept].flat[0]}, which {wanted} cannot hold"


def convert(array: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The array in another dtype, rounded as NumPy does; itself if it has it already."""
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        if dtype_kind(array.dtype) == "complex" and dtype_kind(dtype) != "complex":
            array = _real(array)
        try:
            return array.astype(dtype)
        except TypeError:  # few pairs of ml_dtypes have a cast of their own
            return array.astype(np.float32).astype(dtype)


def _real(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wide = array if array.dtype.kind == "c" else array.astype(np.complex64)
    return wide.real
