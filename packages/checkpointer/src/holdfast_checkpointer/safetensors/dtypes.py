"""The dtypes of the safetensors format: their names, their bits, and packed elements."""

from __future__ import annotations

import math
from typing import Any

import ml_dtypes
import numpy as np

_NAMES: dict[str, Any] = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "F8_E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "F8_E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "F4": ml_dtypes.float4_e2m1fn,
    "F6_E2M3": ml_dtypes.float6_e2m3fn,
    "F6_E3M2": ml_dtypes.float6_e3m2fn,
}
_PACKED = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}

DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(kind) for name, kind in _NAMES.items()}
_BY_DTYPE = {dtype: name for name, dtype in DTYPES.items()}


def name_of(dtype: Any) -> str | None:
    """What the format calls a dtype of either byte order; None if it has no word for it.

    Examples:
        >>> name_of(np.dtype(">f4")), name_of(ml_dtypes.bfloat16), name_of(np.complex128)
        ('F32', 'BF16', None)
    """
    return _BY_DTYPE.get(np.dtype(dtype).newbyteorder("="))


def bits_of(name: str) -> int:
    """Bits of one element in a file."""
    return _PACKED.get(name) or DTYPES[name].itemsize * 8


def is_packed(name: str) -> bool:
    """Whether elements share bytes."""
    return name in _PACKED


def bytes_of(name: str, shape: tuple[int, ...]) -> int | None:
    """The size of a tensor in a file; None if its elements do not fill their last byte.

    Examples:
        >>> bytes_of("F32", (2, 3)), bytes_of("F4", (2, 3)), bytes_of("F4", (3,))
        (24, 3, None)
    """
    whole, rest = divmod(math.prod(shape) * bits_of(name), 8)
    return None if rest else whole


def packed(array: np.ndarray[Any, Any]) -> memoryview:
    """The bytes of a tensor as they stand in a file: little-endian, in C order.

    Elements of less than a byte fill each byte from its low bits up, as PyTorch has two F4
    elements in one byte.
    """
    name = _BY_DTYPE[array.dtype.newbyteorder("=")]
    if name in _PACKED:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)[:, None]
        bits = np.unpackbits(flat, axis=1, count=_PACKED[name], bitorder="little")
        return np.packbits(bits.reshape(-1), bitorder="little").data
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return np.ascontiguousarray(little).reshape(-1).view(np.uint8).data


def unpacked(data: np.ndarray[Any, Any], name: str, shape: tuple[int, ...]) -> Any:
    """The array that packed bytes are."""
    width = _PACKED[name]
    bits = np.unpackbits(data, bitorder="little").reshape(-1, width)
    values = np.packbits(bits, axis=1, bitorder="little").reshape(-1)
    return values.view(DTYPES[name]).reshape(shape)
