"""Arguments of a handler: whose they are, and what a caller's values make."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast_checkpointer.args import CheckpointArgs, Composite
from holdfast_checkpointer.handlers.foreign import orbax


def is_arguments(value: Any) -> bool:
    """Whether a value, or a class, is of holdfast's arguments or of Orbax's."""
    kind = value if isinstance(value, type) else type(value)
    theirs = orbax.arguments_base()
    return issubclass(kind, CheckpointArgs) or (theirs is not None and issubclass(kind, theirs))


def is_arguments_class(value: Any) -> bool:
    """Whether this is a class of arguments, holdfast's or Orbax's."""
    return isinstance(value, type) and is_arguments(value)


def registered_arguments(handler: Any) -> tuple[type, type] | None:
    """The classes of arguments of a handler, to save and to restore; None if not registered."""
    from holdfast_checkpointer.handlers.registry import get_registered_args_cls

    try:
        return get_registered_args_cls(handler)
    except ValueError:
        return None


def build_arguments(expected: type, positional: Sequence[Any], keyword: Mapping[str, Any]) -> Any:
    """The handler's arguments, given as such or made from the caller's.

    Accepted are `args=` with them, they alone, their fields by position or name, and the item
    as `state=`. A composite's items may be given by name.

    Raises:
        TypeError: They are for another handler, or no such fields; nothing was done.
    """
    positional, keyword = tuple(positional), dict(keyword)
    args = keyword.pop("args", None)
    if args is None and not keyword and len(positional) == 1:
        (first,) = positional
        if is_arguments(first):
            args, positional = first, ()
    if args is None:
        return _from_fields(expected, positional, keyword)
    if positional or keyword:
        raise TypeError(f"pass {expected.__name__} alone, or its fields, not both")
    if not isinstance(args, expected):
        raise TypeError(f"this handler takes {wrong_arguments(expected, args)}")
    return args


def _from_fields(expected: type, positional: tuple[Any, ...], keyword: dict[str, Any]) -> Any:
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


def _refuse_other_arguments(expected: type, given: tuple[Any, ...]) -> None:
    for value in given:
        if isinstance(value, expected):
            raise TypeError(f"pass {expected.__name__} alone, or its fields, not both")
        if is_arguments(value):
            raise TypeError(f"this handler takes {wrong_arguments(expected, value)}")


def _fields(kind: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()


def built_in_arguments(
    handler: Any, positional: Sequence[Any], keyword: Mapping[str, Any], *, save: bool
) -> Any:
    """What `build_arguments` makes for a handler of the engine's."""
    from holdfast_checkpointer.handlers.registry import get_registered_args_cls

    return build_arguments(get_registered_args_cls(handler)[0 if save else 1], positional, keyword)


def mismatch(handler: Any, args: Any, *, save: bool) -> str | None:
    """None if these are arguments of a handler of the engine's, else which it takes."""
    from holdfast_checkpointer.handlers.registry import get_registered_args_cls

    expected = get_registered_args_cls(handler)[0 if save else 1]
    return None if isinstance(args, expected) else wrong_arguments(expected, args)


def wrong_arguments(expected: type, found: Any) -> str:
    """The two classes, in words; with their modules if they are of different packages."""
    kind = type(found)
    if is_arguments(kind) and _package(expected) != _package(kind):
        return f"{expected.__module__}.{expected.__name__}, got {kind.__module__}.{kind.__name__}"
    return f"{expected.__name__}, got {kind.__name__}"


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
