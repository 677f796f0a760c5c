"""What must hold before anything is decided in a run: that its writer still has the lease.

A writer does its work inside `guarded`. Every attempt begun there carries the epoch of the
lease in its mark, and every decision asks first, after it has read what it is about to change.
Whoever takes the run over makes the next epoch, then fences what carries an older one: so
that a decision either asked too late, or was fenced, or had been made before.

Without a guard nothing is asked: free functions need no lease.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

from holdfast_metadata import LEASE_FIELD


class Guard(Protocol):
    """A lease that is held.

    Attributes:
        epoch: Its number.
    """

    @property
    def epoch(self) -> int: ...  # noqa: D102 - told above

    async def require(self) -> None:
        """Asks the store whether the lease is held still.

        Raises:
            LeaseLostError: It is not.
        """


_current: ContextVar[Guard | None] = ContextVar("holdfast-guard", default=None)


@contextlib.contextmanager
def guarded(guard: Guard) -> Iterator[None]:
    """Whatever is begun and decided in this block, and in tasks started there, needs the lease."""
    token = _current.set(guard)
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Nothing in this block needs the lease: it touches what was removed before."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Guard | None:
    """The guard of the block that runs, or None."""
    return _current.get()


async def require() -> None:
    """Asks whether what is to be decided now may be; nothing to ask without a guard.

    Raises:
        LeaseLostError: Another process has taken the run over.
    """
    guard = _current.get()
    if guard is not None:
        await guard.require()


def said_in_marks() -> Mapping[str, Any]:
    """What marks made in this block say of it."""
    guard = _current.get()
    return {} if guard is None else {LEASE_FIELD: guard.epoch}
