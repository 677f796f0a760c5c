"""JSON as holdfast writes it (canonical) and reads it (strict)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from holdfast_metadata.errors import MetadataError

_encoder = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True, check_circular=False
)


def canonical_json(value: Any) -> bytes:
    """Encodes with sorted keys and no white space; equal values give equal bytes.

    Raises:
        MetadataError: `value` is not JSON.

    Example:
        >>> canonical_json({"b": 1, "a": [None, True]})
        b'{"a":[null,true],"b":1}'
    """
    try:
        return _encoder.encode(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise MetadataError(f"cannot be written as JSON: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"duplicate keys {twice}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def parse_json(data: bytes, *, source: str = "") -> Any:
    """Decodes strictly: UTF-8, no duplicate keys, no NaN or Infinity, nothing after the end.

    Raises:
        MetadataError: It is not such JSON; the message names `source`.
    """
    try:
        return _decoder.decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        where = source or "a document"
        raise MetadataError(f"{where} is not valid JSON: {error}") from error


def require_json(value: Any, *, what: str) -> None:
    """Refuses a caller's value that JSON would not give back as it is.

    Raises:
        MetadataError: Names the place inside `what`, what was found and what is accepted.

    Example:
        >>> require_json({"lr": [0.1, None]}, what="custom_metadata")
        >>> require_json({"lr": {1: 2}}, what="custom_metadata")
        Traceback (most recent call last):
        holdfast_metadata.errors.MetadataError: custom_metadata['lr'] has the key 1 (int); \
JSON objects have text keys
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str:
                kind = type(key).__name__
                raise MetadataError(
                    f"{what} has the key {key!r} ({kind}); JSON objects have text keys"
                )
            require_json(item, what=f"{what}[{key!r}]")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            require_json(item, what=f"{what}[{index}]")
    elif type(value) is float:
        if not math.isfinite(value):
            raise MetadataError(f"{what} is {value!r}; JSON numbers are finite")
    elif value is not None and type(value) not in (str, int, bool):
        raise MetadataError(
            f"{what} is {value!r} of type {type(value).__name__}; JSON holds text, numbers, "
            "true, false, null, lists and objects"
        )
