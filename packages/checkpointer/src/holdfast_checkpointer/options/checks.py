"""How an option is refused: in words, where it is made, before anything happens."""

from __future__ import annotations

import enum
from typing import Any, TypeVar

from holdfast_checkpointer.errors import UnsupportedOptionError

E = TypeVar("E", bound=enum.Enum)


def refuse_unless(accepted: bool, option: str, value: Any, *, accepts: str, because: str) -> None:
    """Refuses a value that would have no effect here.

    Raises:
        UnsupportedOptionError: `accepted` is false; the message has all the rest.
    """
    if not accepted:
        raise UnsupportedOptionError(
            f"{option}={value!r} has no meaning here: {because}. Accepted: {accepts}"
        )


def refuse_unless_positive(option: str, value: Any) -> None:
    """Refuses what is neither None nor a positive whole number.

    Raises:
        ValueError: The message names the option.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{option} must be None or a whole number of at least 1, got {value!r}")


def member(kind: type[E], option: str, value: Any) -> E:
    """The member of an enumeration that a value, or its text, means.

    Raises:
        ValueError: It means none; the message lists them.
    """
    text = value.value if isinstance(value, enum.Enum) else value
    try:
        return kind(text)
    except ValueError:
        accepted = ", ".join(repr(one.value) for one in kind)
        raise ValueError(f"{option} must be one of {accepted}, got {value!r}") from None
