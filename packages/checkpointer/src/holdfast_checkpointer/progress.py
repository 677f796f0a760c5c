"""What goes on long says that it gets on, to whoever waits for it."""

from __future__ import annotations

import contextvars
from collections.abc import Callable

_listener: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar(
    "holdfast_progress", default=None
)


def note() -> None:
    """Says that the work around this call has got on; nothing where nobody listens."""
    listener = _listener.get()
    if listener is not None:
        listener()


def listen(listener: Callable[[], None]) -> contextvars.Token[Callable[[], None] | None]:
    """Has the work that this task does from now on told of; `forget` ends it."""
    return _listener.set(listener)


def forget(token: contextvars.Token[Callable[[], None] | None]) -> None:
    """Ends what `listen` began, in the same task."""
    _listener.reset(token)
