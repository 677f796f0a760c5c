"""Which handler saves an item, and which one loads it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from holdfast_checkpointer.engine.names import STATE
from holdfast_checkpointer.errors import NoHandlerError, UnsupportedLeafError
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.v1.builtin import EngineHandler, PyTreeHandler, is_stateful
from holdfast_checkpointer.handlers.v1.drivers import driver_of, recorded_as
from holdfast_checkpointer.handlers.v1.registry import CheckpointableHandlerRegistry
from holdfast_checkpointer.options import Context

_log = logging.getLogger(__name__)
_ORBAX = "orbax.checkpoint."


def stage_item(name: str, checkpointable: Any, context: Context) -> Item:
    """Stages an item with the handler that takes it.

    An object that saves itself: the last handler added that takes it. Else the handler added
    for the name. Else the last one added that takes it.

    Raises:
        ValueError: It is None, or a handler cannot be made without arguments, or (from the
            handler) the item cannot be saved.
        NoHandlerError: No handler takes it; the message says what keeps it from being a PyTree.
    """
    if checkpointable is None:
        raise ValueError(f"item {name!r} is None, which holds nothing to save; leave it out")
    registry = context.checkpointables.registry
    named = registry.has(name)
    if named and not (is_stateful(checkpointable) and _any(registry, checkpointable)):
        return driver_of(made(registry.get(name), name)).stage(checkpointable, context)
    problems: tuple[str, ...] = ()
    for handler in _taking(registry, checkpointable):
        try:
            return driver_of(handler).stage(checkpointable, context)
        except UnsupportedLeafError as error:
            if type(handler) is not PyTreeHandler:
                raise
            problems = error.problems  # it was not asked before, which would cost as much
    known = ", ".join(_shown(registry)) or "none"
    raise NoHandlerError(
        f"no handler takes item {name!r} of type {type(checkpointable).__qualname__}; register one "
        f"whose is_handleable does, or save it as something else. Handlers: {known}",
        problems,
    )


def stage_tree(name: str, state: Any, context: Context) -> Item:
    """Stages what `save` takes: a PyTree, unless a handler of a user's is for that.

    Raises:
        UnsupportedLeafError: A leaf cannot be saved; every such leaf is named.
    """
    if state is not None and has_foreign(context.checkpointables.registry):
        return stage_item(name, state, context)
    return driver_of(PyTreeHandler()).stage(state, context)


def has_foreign(registry: CheckpointableHandlerRegistry) -> bool:
    """Whether any handler in it is not holdfast's."""
    return any(is_foreign(kind) for kind, _ in registry.get_all_entries())


def is_foreign(kind: type) -> bool:
    """Whether a class of handlers is not holdfast's."""
    return kind.__module__ != PyTreeHandler.__module__


def _any(registry: CheckpointableHandlerRegistry, checkpointable: Any) -> bool:
    return next(_taking(registry, checkpointable), None) is not None


def _taking(registry: CheckpointableHandlerRegistry, checkpointable: Any) -> Iterator[Any]:
    """The handlers for any item that take this one, the last added first."""
    for kind, name in reversed(registry.get_all_entries()):
        if name is not None:
            continue
        handler = made(kind, None)
        if isinstance(handler, PyTreeHandler) and not is_foreign(kind):
            if not is_stateful(checkpointable):
                yield handler
        elif handler.is_handleable(checkpointable):
            yield handler


def resolve_for_load(
    registry: CheckpointableHandlerRegistry,
    name: str,
    abstract_checkpointable: Any,
    recorded: str | None,
) -> Any | None:
    """The handler that loads an item; None if the registry has none for it.

    An object that loads itself: the handler recorded. Else the one added for the name, else
    the one recorded, else the last one added, of those that take the abstract item. Else the
    one added for the name, whether it takes it or not.

    Raises:
        ValueError: A handler cannot be made without arguments.
    """
    named = made(registry.get(name), name) if registry.has(name) else None
    meant = _recorded(registry, recorded)
    order = [meant, named] if is_stateful(abstract_checkpointable) else [named, meant]
    for handler in order:
        if handler is not None and _accepts(handler, abstract_checkpointable):
            return handler
    if abstract_checkpointable is not None:
        for kind, entry in reversed(registry.get_all_entries()):
            if entry is None:
                handler = made(kind, None)
                if handler.is_abstract_handleable(abstract_checkpointable):
                    return handler
    return named


def fallback_for_load(
    registry: CheckpointableHandlerRegistry, name: str, recorded: str | None, *, is_tree: bool
) -> Any:
    """The handler added for `state`, for a PyTree of which nothing else is known.

    Raises:
        NoHandlerError: There is none.
    """
    if not is_tree or not registry.has(STATE):
        known = ", ".join(_shown(registry)) or "none"
        raise NoHandlerError(
            f"item {name!r} was saved by {recorded or 'an unnamed handler'}, which is not known "
            f"here: register it, with secondary_typestrs if it has another name now. "
            f"Handlers: {known}"
        )
    if recorded is not None:
        _log.warning("item %r: its handler %s is not known, but it is a PyTree", name, recorded)
    return made(registry.get(STATE), name)


def _accepts(handler: Any, abstract_checkpointable: Any) -> bool:
    """None from the handler leaves it to what was recorded, and this is that."""
    if abstract_checkpointable is None:
        return True
    return handler.is_abstract_handleable(abstract_checkpointable) is not False


def _recorded(registry: CheckpointableHandlerRegistry, recorded: str | None) -> Any | None:
    if recorded is None:
        return None
    for kind, name in reversed(registry.get_all_entries()):
        if recorded in (recorded_as(kind), *registry.get_secondary_typestrs(kind)):
            return made(kind, name)
    if recorded.startswith(_ORBAX):  # which has moved its classes before
        last = recorded.rpartition(".")[2]
        for kind, name in reversed(registry.get_all_entries()):
            means = {s.rpartition(".")[2] for s in registry.get_secondary_typestrs(kind)}
            if issubclass(kind, EngineHandler):
                means.add(kind.__name__)
            if last in means:
                return made(kind, name)
    return None


def made(kind: type, name: str | None) -> Any:
    """An instance of a handler's class.

    Raises:
        ValueError: It cannot be made without arguments.
    """
    try:
        return kind()
    except TypeError as error:
        about = f" of item {name!r}" if name else ""
        raise ValueError(
            f"the handler {kind.__qualname__}{about} cannot be made without arguments: {error}"
        ) from error


def _shown(registry: CheckpointableHandlerRegistry) -> list[str]:
    return [
        kind.__qualname__ + (f" (for {name!r})" if name else "")
        for kind, name in registry.get_all_entries()
    ]
