"""Lossless JSON for scalar leaves: any int, any float, complex, text, bytes, NumPy scalars."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from holdfast_metadata.dtypes import dtype_from_name, dtype_name
from holdfast_metadata.errors import MetadataError


def encode_scalar(kind: str, value: Any) -> Any:
    """Encodes a scalar leaf of the given kind.

    Example:
        >>> encode_scalar("int", 2**70), encode_scalar("float", 0.1)
        ('1180591620717411303424', '0x1.999999999999ap-4')
    """
    match kind:
        case "int":
            return str(value)
        case "float":
            return value.hex()
        case "bool":
            return bool(value)
        case "complex":
            return [value.real.hex(), value.imag.hex()]
        case "str":
            return _text(value)
        case "bytes":
            return base64.b64encode(value).decode("ascii")
        case "np.generic":
            array = np.asarray(value)
            little = (
                array.astype(array.dtype.newbyteorder("<")) if array.dtype.kind in "iufc" else array
            )
            raw = base64.b64encode(little.tobytes()).decode("ascii")
            return [dtype_name(array.dtype), raw]
    raise MetadataError(f"a leaf of kind {kind!r} has no inline value")


def decode_scalar(kind: str, stored: Any) -> Any:
    """The inverse of `encode_scalar`.

    Raises:
        MetadataError: `stored` is not such a value.
    """
    try:
        return _decode(kind, stored)
    except MetadataError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise MetadataError(f"{stored!r:.60} is no stored {kind}") from error


def _decode(kind: str, stored: Any) -> Any:
    match kind:
        case "int":
            return _parse_int(stored)
        case "float":
            return float.fromhex(stored)
        case "bool":
            if type(stored) is not bool:
                raise TypeError
            return stored
        case "complex":
            real, imaginary = stored
            return complex(float.fromhex(real), float.fromhex(imaginary))
        case "str":
            return stored if isinstance(stored, str) else _untext(stored)
        case "bytes":
            return base64.b64decode(stored, validate=True)
        case "np.generic":
            name, raw = stored
            dtype = dtype_from_name(name)
            return np.frombuffer(base64.b64decode(raw, validate=True), dtype)[0]
    raise MetadataError(f"a leaf of kind {kind!r} has no inline value")


def _parse_int(stored: Any) -> int:
    if not isinstance(stored, str) or not stored.lstrip("-").isdecimal():
        raise ValueError
    return int(stored)


def _text(value: str) -> Any:
    """Text as it is; text with lone surrogates, which UTF-8 cannot hold, as a list of codes."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return [ord(char) for char in value]
    return value


def _untext(stored: Any) -> str:
    return "".join(chr(code) for code in stored)
