"""Lossless JSON for scalar leaves: any int, any float, complex, text, bytes, NumPy scalars."""

from __future__ import annotations

import base64
import math
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from holdfast_metadata.dtypes import dtype_from_name, dtype_name
from holdfast_metadata.errors import MetadataError

# Python refuses to convert longer numbers to decimal text, from 640 digits upwards.
_DECIMAL_BITS = 2048
_NAN = "nan:"
_INT = re.compile(r"-?(0x[0-9a-f]+|0|[1-9][0-9]*)", re.ASCII)


def encode_scalar(kind: str, value: Any) -> Any:
    """Encodes a scalar leaf as JSON, so that `decode_scalar` gives back the same value.

    Args:
        kind: int, float, bool, complex, str, bytes or np.generic.
        value: A value of that kind; it is not looked at twice.

    Raises:
        MetadataError: There is no such kind, or a NumPy scalar has a dtype that no
            checkpoint can hold.

    Examples:
        >>> encode_scalar("int", 2**70), encode_scalar("float", 0.1)
        ('1180591620717411303424', '0x1.999999999999ap-4')
    """
    try:
        encode = _ENCODERS[kind]
    except KeyError:
        raise MetadataError(f"a leaf of kind {kind!r} has no inline value") from None
    return encode(value)


def decode_scalar(kind: str, stored: Any) -> Any:
    """The inverse of `encode_scalar`.

    Raises:
        MetadataError: `stored` is not such a value.

    Examples:
        >>> decode_scalar("complex", ["-0x0.0p+0", "inf"])
        (-0+infj)
    """
    try:
        decode = _DECODERS[kind]
    except KeyError:
        raise MetadataError(f"a leaf of kind {kind!r} has no inline value") from None
    try:
        return decode(stored)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, MetadataError):
            raise
        raise MetadataError(f"{stored!r:.60} is no stored {kind}") from error


def _int(value: int) -> str:
    return str(value) if value.bit_length() <= _DECIMAL_BITS else hex(value)


def _float(value: float) -> str:
    """Hexadecimal, exact; a NaN by its bits, which carry a sign and a payload."""
    if math.isnan(value):
        return _NAN + struct.pack(">d", value).hex()
    return float.hex(value)


def _parse_float(stored: Any) -> float:
    if not stored.startswith(_NAN):
        return float.fromhex(stored)
    bits = bytes.fromhex(stored.removeprefix(_NAN))
    if len(bits) != 8:
        raise ValueError(stored)
    value: float = struct.unpack(">d", bits)[0]
    if not math.isnan(value):
        raise ValueError(stored)
    return value


def _parse_int(stored: Any) -> int:
    if not _INT.fullmatch(stored):
        raise ValueError(stored)
    return int(stored, 16 if "x" in stored else 10)


def _parse_bool(stored: Any) -> bool:
    if type(stored) is not bool:
        raise TypeError(stored)
    return stored


def _complex(value: complex) -> list[str]:
    return [_float(value.real), _float(value.imag)]


def _parse_complex(stored: Any) -> complex:
    real, imaginary = _list(stored)
    return complex(_parse_float(real), _parse_float(imaginary))


def _text(value: str) -> Any:
    """Text as it is; text with lone surrogates, which UTF-8 cannot hold, as a list of codes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return [ord(char) for char in value]
    return value


def _parse_text(stored: Any) -> str:
    return stored if isinstance(stored, str) else "".join(map(chr, _list(stored)))


def _bytes(value: bytes) -> str:
    return base64.b64encode(value).decode("ascii")


def _parse_bytes(stored: Any) -> bytes:
    return base64.b64decode(stored, validate=True)


def _numpy(value: np.generic) -> list[str]:
    array = np.asarray(value)
    name = dtype_name(array.dtype)
    return [name, _bytes(array.astype(_little(array.dtype)).tobytes())]


def _parse_numpy(stored: Any) -> Any:
    name, text = _list(stored)
    dtype = dtype_from_name(name)
    raw = _parse_bytes(text)
    if len(raw) != dtype.itemsize:
        raise ValueError(f"{len(raw)} bytes")
    return np.frombuffer(raw, _little(dtype)).astype(dtype)[0]


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<") if dtype.kind in "iufc" else dtype


def _list(stored: Any) -> list[Any]:
    if not isinstance(stored, list):
        raise TypeError(stored)
    return stored


_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "bool": bool,
    "complex": _complex,
    "str": _text,
    "bytes": _bytes,
    "np.generic": _numpy,
}
_DECODERS: dict[str, Callable[[Any], Any]] = {
    "int": _parse_int,
    "float": _parse_float,
    "bool": _parse_bool,
    "complex": _parse_complex,
    "str": _parse_text,
    "bytes": _parse_bytes,
    "np.generic": _parse_numpy,
}
