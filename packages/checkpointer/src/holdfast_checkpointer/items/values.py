"""Leaves whose value the item's document holds, as the target asks for them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays.casting import convert, overflow_problem
from holdfast_checkpointer.errors import TreeMismatchError
from holdfast_checkpointer.items.placing import Places, Placing, x64_as
from holdfast_checkpointer.trees.match import Want
from holdfast_checkpointer.trees.paths import show
from holdfast_metadata import decode_scalar

_PYTHON: dict[str, Any] = {"int": int, "float": float, "bool": bool, "complex": complex}


def inline(want: Want, places: Places, placing: Placing) -> Any:
    """Makes one leaf of a number, text or bytes.

    Raises:
        TreeMismatchError: The value does not fit what is asked for.
        PlacementError: JAX holds no such value here.
    """
    assert want.spec is not None
    value = decode_scalar(want.spec.kind, want.spec.value)
    if want.form == "saved":
        return value
    if want.form == "python":
        return as_python(value, want, unsafe=placing.unsafe)
    array = _as_array(value, want)
    if want.dtype is not None:
        array = cast(array, want, np.dtype(want.dtype), unsafe=placing.unsafe)
    if want.form == "generic":
        return array[()]
    if want.form == "numpy":
        return array
    with x64_as(placing.x64):
        return _on_device(value, array, want, places)


def _on_device(value: Any, array: np.ndarray[Any, Any], want: Want, places: Places) -> Any:
    assert want.spec is not None
    sharding = places.sharding(want, want.spec)
    if want.dtype is None and type(value) in (int, float, bool, complex):
        try:  # what JAX makes of a Python number, weak as it is
            return jax.device_put(jax.numpy.asarray(value), sharding)
        except OverflowError as error:
            raise TreeMismatchError([f"{show(want.path)}: {error}"]) from error
    places.check_held(want, array.dtype)
    return jax.device_put(array, sharding)


def _as_array(value: Any, want: Want) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.dtype != np.object_:
        return array
    raise TreeMismatchError([f"{show(want.path)}: {value} is an int beyond 64 bits, for no array"])


def cast(
    array: np.ndarray[Any, Any], want: Want, dtype: np.dtype[Any], *, unsafe: bool
) -> np.ndarray[Any, Any]:
    """The array in another dtype.

    Raises:
        TreeMismatchError: An integer would come out as another.
    """
    problem = None if unsafe else overflow_problem(array, dtype)
    if problem:
        raise TreeMismatchError([f"{show(want.path)} {problem}; cast='unsafe' would wrap it"])
    return convert(array, dtype)


def as_python(value: Any, want: Want, *, unsafe: bool) -> Any:
    """A value as the Python scalar that is asked for.

    Raises:
        TreeMismatchError: It is none, exactly.
    """
    if want.dtype is not None and not isinstance(value, str | bytes):
        array = _as_array(value, want)
        value = cast(array, want, np.dtype(want.dtype), unsafe=unsafe)[()]
    python = _PYTHON.get(want.python)
    if python is None:
        return value
    value = value.item() if hasattr(value, "item") else value
    try:
        made = python(value)
    except (TypeError, ValueError, OverflowError):
        made = None
    if made is None or (made != value and made == made):
        raise TreeMismatchError([f"{show(want.path)}: {value!r} is no exact {want.python}"])
    return made
