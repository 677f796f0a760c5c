"""What the arguments of policies must be; told when the policy is made, not when it is asked."""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Container, Iterable
from typing import Any


def check_integer(name: str, value: Any, *, at_least: int, or_none: bool = False) -> None:
    """Refuses what is no integer of that size.

    Raises:
        TypeError: It is not an integer (a bool is not one).
        ValueError: It is too small.
    """
    if value is None and or_none:
        return
    accepted = f"{name} is an integer >= {at_least}" + (" or None" if or_none else "")
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{accepted}, got {value!r} of type {type(value).__name__}")
    if value < at_least:
        raise ValueError(f"{accepted}, got {value!r}")


def check_seconds(name: str, value: Any, *, or_none: bool = False) -> None:
    """Refuses what is no length of time.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    if value is None and or_none:
        return
    accepted = f"{name} is a number of seconds >= 0" + (" or None" if or_none else "")
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{accepted}, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{accepted}, got {value!r}")


def check_duration(name: str, value: Any) -> None:
    """Refuses what is no `datetime.timedelta` >= 0."""
    accepted = f"{name} is a datetime.timedelta >= 0"
    if not isinstance(value, datetime.timedelta):
        raise TypeError(f"{accepted}, got {value!r} of type {type(value).__name__}")
    if value < datetime.timedelta(0):
        raise ValueError(f"{accepted}, got {value!r}")


def check_steps(value: Any) -> None:
    """Refuses what cannot be asked again and again whether a step is in it."""
    if isinstance(value, str | bytes) or not isinstance(value, Container):
        raise TypeError(
            f"steps is a set, list, range or another container of integers, got {value!r} of type "
            f"{type(value).__name__}"
        )
    if isinstance(value, list | tuple | set | frozenset):
        for member in value:
            if not _may_be_a_step(member):
                raise TypeError(f"steps holds integers, got {member!r}, which no step is equal to")


def _may_be_a_step(member: Any) -> bool:
    try:
        return bool(member == int(member))  # 3.0 is equal to a step
    except (TypeError, ValueError, OverflowError):
        return False


def check_policies(value: Any, kind: type, method: str) -> tuple[Any, ...]:
    """Returns the members of a combined policy.

    Raises:
        TypeError: It is no sequence, or one of them is no policy; it is named.
    """
    if isinstance(value, kind) or not isinstance(value, Iterable):
        raise TypeError(f"policies is a list of policies, got {value!r}")
    members = tuple(value)
    for index, member in enumerate(members):
        check_policy(f"policies[{index}]", member, kind, method)
    return members


def check_policy(name: str, value: Any, kind: type, method: str) -> None:
    """Refuses what is no policy.

    Raises:
        TypeError: It has no such method, or is a class.
    """
    if isinstance(value, type):
        raise TypeError(
            f"{name} is a policy, got the class {value.__name__}: call it, as {value.__name__}(...)"
        )
    if not isinstance(value, kind):
        raise TypeError(f"{name} is a policy, which has a method {method}, got {value!r}")


def yes_or_no(answer: Any, policy: Any) -> bool:
    """What a policy answered, as a bool: those of numpy and of JAX are taken too.

    Raises:
        TypeError: It is neither, such as the None of a function without `return`.
    """
    with contextlib.suppress(Exception):  # an array of several says neither, and raises
        if answer == bool(answer):
            return bool(answer)
    raise TypeError(f"{policy!r} answers True or False, and gave {answer!r}")
