"""Which classes are driven through Orbax's protocol, and by which string they are recorded."""

from __future__ import annotations

import inspect
from typing import Any

from holdfast_checkpointer.handlers.base import CheckpointHandler, overrides

METHODS = ("save", "async_save", "restore", "metadata", "finalize")


def is_foreign(kind: type) -> bool:
    """Whether a class of handlers is driven through Orbax's protocol alone."""
    if issubclass(kind, CheckpointHandler):
        return any(overrides(kind, method) for method in METHODS)
    return _protocol_problem(kind) is None


def check_handler_class(kind: Any) -> None:
    """Refuses what is no class of handlers.

    Raises:
        TypeError: The message says what is missing.
    """
    if not isinstance(kind, type):
        raise TypeError(f"expected a class of CheckpointHandler, got {kind!r}")
    if issubclass(kind, CheckpointHandler):
        problem = _incomplete(kind)
    else:
        problem = _protocol_problem(kind)
    if problem is not None:
        raise TypeError(f"expected a CheckpointHandler, got {kind.__name__}: {problem}")


def typestr_of(kind: type) -> str:
    """The string that a class of handlers is recorded by: what it says itself, or its path."""
    told = getattr(kind, "typestr", None)
    return str(told()) if callable(told) else _path(kind)


def default_typestr(kind: type[CheckpointHandler]) -> str:
    """What a class of holdfast's handlers says: `recorded_as`, or its path if it has its ways."""
    if "recorded_as" not in vars(kind) and is_foreign(kind):
        return _path(kind)
    return str(getattr(kind, "recorded_as", _path(kind)))


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _incomplete(kind: type[CheckpointHandler]) -> str | None:
    """What a subclass of ours lacks, in words; None if nothing."""
    if kind.stage is not CheckpointHandler.stage:
        missing = [
            m for m in ("fetch", "describe") if getattr(kind, m) is vars(CheckpointHandler)[m]
        ]
        return f"it has 'stage', but lacks {' and '.join(map(repr, missing))}" if missing else None
    if not is_foreign(kind):
        return "it has neither 'save' and 'restore' nor 'stage', 'fetch' and 'describe'"
    return _lacks(
        saves=overrides(kind, "save") or overrides(kind, "async_save"),
        restores=overrides(kind, "restore"),
    )


def _protocol_problem(kind: type) -> str | None:
    """Why a class does not follow Orbax's protocol of handlers, in words; None if it does."""
    save, restore = getattr(kind, "save", None), getattr(kind, "restore", None)
    if inspect.iscoroutinefunction(save):
        return "its 'save' is a coroutine; only 'async_save' may be one"
    saves = callable(save) or callable(getattr(kind, "async_save", None))
    return _lacks(saves=saves, restores=callable(restore))


def _lacks(*, saves: bool, restores: bool) -> str | None:
    missing = [name for name, there in (("'save'", saves), ("'restore'", restores)) if not there]
    return f"it lacks the method {' and '.join(missing)}" if missing else None
