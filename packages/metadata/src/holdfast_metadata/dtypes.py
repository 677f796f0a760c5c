"""Names of dtypes: every NumPy number and every ml_dtypes type, and nothing else."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from holdfast_metadata.errors import MetadataError

_NUMPY = (
    "bool",
    *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)),
    *("float16", "float32", "float64", "complex64", "complex128"),
)


def _extension_dtypes() -> dict[str, np.dtype[Any]]:
    found = {}
    for name in dir(ml_dtypes):
        kind = getattr(ml_dtypes, name)
        if isinstance(kind, type) and issubclass(kind, np.generic):
            found[np.dtype(kind).name] = np.dtype(kind)
    return found


_BY_NAME: dict[str, np.dtype[Any]] = {
    **{name: np.dtype(name) for name in _NUMPY},
    **_extension_dtypes(),
}
_NAMES = {dtype: name for name, dtype in _BY_NAME.items()}


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, without byte order.

    Args:
        dtype: A dtype, a scalar type or a name; not None, which NumPy takes for float64.

    Raises:
        MetadataError: It is none that a checkpoint can hold.

    Examples:
        >>> dtype_name(np.dtype(">f4")), dtype_name(ml_dtypes.bfloat16)
        ('float32', 'bfloat16')
    """
    try:
        found = np.dtype(dtype) if dtype is not None else None
    except TypeError:
        found = None
    if found is None:
        raise MetadataError(f"{dtype!r:.60} is no dtype")
    try:
        return _NAMES[found]  # the fast path: native byte order
    except KeyError:
        name = _NAMES.get(found.newbyteorder("="))
    if name is None:
        raise MetadataError(
            f"dtype {found} cannot be stored; accepted are bool, integers, floats, complex "
            "numbers and the types of ml_dtypes"
        )
    return name


def dtype_from_name(name: str) -> np.dtype[Any]:
    """The dtype of a name, in native byte order.

    Raises:
        MetadataError: Unknown here; a newer ml_dtypes may know it.

    Examples:
        >>> dtype_from_name("int4")
        dtype(int4)
    """
    try:
        return _BY_NAME[name]
    except KeyError:
        raise MetadataError(
            f"unknown dtype {name!r}; known are {', '.join(_BY_NAME)}; a newer ml_dtypes may "
            "know more"
        ) from None
