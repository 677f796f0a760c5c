"""JSON as holdfast writes it (canonical) and reads it (strict)."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from holdfast_metadata.errors import MetadataError, NotJsonError

_SURROGATE = re.compile("[\ud800-\udfff]")
_canonical = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True, check_circular=False
)
_with_constants = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=True, check_circular=False
)
_ordered = json.JSONEncoder(
    separators=(",", ":"), allow_nan=False, ensure_ascii=True, check_circular=False
)


def canonical_json(value: Any) -> bytes:
    """Encodes with sorted keys and no white space, as ASCII; equal values give equal bytes.

    Raises:
        MetadataError: `value` is not JSON, or nested too deeply.

    Examples:
        >>> canonical_json({"b": 1, "a": [None, True]})
        b'{"a":[null,true],"b":1}'
    """
    return _encode(_canonical, value)


def ordered_json(value: Any) -> bytes:
    """As `canonical_json`, but the keys stay in the order they have: for Orbax's documents.

    Raises:
        MetadataError: `value` is not JSON, or nested too deeply.
    """
    return _encode(_ordered, value)


def constants_json(value: Any) -> bytes:
    """As `canonical_json`, but NaN and infinite numbers are taken, as Python and Orbax write them.

    Raises:
        MetadataError: `value` is not JSON otherwise, or nested too deeply.
    """
    return _encode(_with_constants, value)


def _encode(encoder: json.JSONEncoder, value: Any) -> bytes:
    try:
        return encoder.encode(value).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise MetadataError(f"cannot be written as JSON: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = sorted(name for name, count in counts.items() if count > 1)
        raise ValueError(f"duplicate keys {twice}")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the range of a float")
    return value


_strict = json.JSONDecoder(
    object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
)
_lenient = json.JSONDecoder()


def parse_json(data: bytes, *, source: str = "", lenient: bool = False) -> Any:
    """Decodes strictly: UTF-8, no duplicate keys, no NaN or Infinity, nothing after the end.

    Args:
        data: The whole document.
        source: What it is, for messages.
        lenient: Take what Python's `json` takes, and so what Orbax may have written: NaN
            and Infinity, and of duplicate keys the last.

    Raises:
        MetadataError: It is not such JSON; the message names `source`.
    """
    try:
        return (_lenient if lenient else _strict).decode(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        where = source or "a document"
        raise MetadataError(f"{where} is not valid JSON: {error}") from error


def require_json(value: Any, *, what: str, finite: bool = True) -> None:
    """Refuses a caller's value that JSON does not hold. Whatever passes can be written.

    Tuples pass and come back as lists; subclasses of the plain types (`np.float64`) pass and
    come back plain; `value` itself may be any mapping. Everything else comes back equal.

    Args:
        value: The caller's.
        what: What to call it in messages.
        finite: Whether numbers must be; without, `constants_json` writes it.

    Raises:
        NotJsonError: Names the place inside `what`, what was found and what is accepted.

    Examples:
        >>> require_json({"lr": [0.1, None]}, what="custom_metadata")
        >>> require_json({"lr": {1: 2}}, what="custom_metadata")
        Traceback (most recent call last):
        holdfast_metadata.errors.NotJsonError: custom_metadata['lr'] has the key 1 (int); \
JSON objects have text keys
    """
    if isinstance(value, Mapping):
        value = dict(value)
    try:
        problem = _problem(value, finite)
    except RecursionError:
        raise NotJsonError(f"{what} contains itself or is nested too deeply") from None
    if problem is not None:
        place, message = problem
        raise NotJsonError(f"{what}{place} {message}")
    try:
        (canonical_json if finite else constants_json)(value)
    except MetadataError as error:
        raise NotJsonError(f"{what} {error}") from error


def _problem(value: Any, finite: bool) -> tuple[str, str] | None:
    """What JSON does not hold: its place and the rest of the message; None if all is well."""
    if isinstance(value, dict):
        return _problem_in_dict(value, finite)
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            if found := _problem(item, finite):
                return f"[{index}]{found[0]}", found[1]
    elif isinstance(value, float):
        if finite and not math.isfinite(value):
            return "", f"is {value!r}; JSON numbers are finite"
    elif isinstance(value, str):
        return _problem_in_text(value)
    elif value is not None and not isinstance(value, int):
        kind = type(value).__name__
        accepted = "text, numbers, true, false, null, lists and objects"
        advice = "; .item() makes one of it" if getattr(value, "shape", None) == () else ""
        return "", f"is {value!r:.60} of type {kind}; JSON holds {accepted}{advice}"
    return None


def _problem_in_dict(value: dict[Any, Any], finite: bool) -> tuple[str, str] | None:
    for key, item in value.items():
        if not isinstance(key, str):
            kind = type(key).__name__
            return "", f"has the key {key!r} ({kind}); JSON objects have text keys"
        if found := _problem_in_text(key):
            return f" has the key {key!r}, which", found[1]
        if found := _problem(item, finite):
            return f"[{key!r}]{found[0]}", found[1]
    return None


def _problem_in_text(value: str) -> tuple[str, str] | None:
    # Two lone surrogates side by side would come back as one character.
    if not value.isascii() and _SURROGATE.search(value):
        return "", f"is {value!r:.60}; text with lone surrogates is not Unicode"
    return None
