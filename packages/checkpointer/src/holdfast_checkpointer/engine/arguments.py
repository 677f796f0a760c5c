"""What a v0 checkpointer was called with, as the handler's arguments."""

from __future__ import annotations

import dataclasses
from typing import Any

from holdfast_checkpointer.args import CheckpointArgs, Composite


def build_arguments(
    expected: type[CheckpointArgs], positional: tuple[Any, ...], keyword: dict[str, Any]
) -> CheckpointArgs:
    """The handler's arguments, given as such or made from the caller's.

    Accepted are `args=` with them, they alone, their fields by position or name, and the item
    as `state=`. A composite's items may be given by name.

    Raises:
        TypeError: They are for another handler, or no such fields; nothing was done.
    """
    keyword = dict(keyword)
    args = keyword.pop("args", None)
    if args is None and not keyword and len(positional) == 1:
        (first,) = positional
        if isinstance(first, CheckpointArgs):
            args, positional = first, ()
    if args is None:
        return _from_fields(expected, positional, keyword)
    if positional or keyword:
        raise TypeError(f"pass {expected.__name__} alone, or its fields, not both")
    if not isinstance(args, expected):
        raise TypeError(f"this handler takes {expected.__name__}, got {type(args).__name__}")
    return args


def _from_fields(
    expected: type[CheckpointArgs], positional: tuple[Any, ...], keyword: dict[str, Any]
) -> CheckpointArgs:
    if not issubclass(expected, Composite):
        _refuse_other_arguments(expected, (*positional, *keyword.values()))
        names = {field.name for field in _fields(expected)}
        if "state" in keyword and "state" not in names and "item" in names:
            keyword["item"] = keyword.pop("state")
    elif positional:
        raise TypeError("a composite handler takes its items by name, or args.Composite(...)")
    try:
        return expected(*positional, **keyword)
    except TypeError as error:
        raise TypeError(f"these are no arguments of {expected.__name__}: {error}") from error


def _refuse_other_arguments(expected: type[CheckpointArgs], given: tuple[Any, ...]) -> None:
    for value in given:
        if isinstance(value, expected):
            raise TypeError(f"pass {expected.__name__} alone, or its fields, not both")
        if isinstance(value, CheckpointArgs):
            raise TypeError(f"this handler takes {expected.__name__}, got {type(value).__name__}")


def _fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()
