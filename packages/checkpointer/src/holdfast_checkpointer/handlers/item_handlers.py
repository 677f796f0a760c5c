"""Which handler an item of a composite checkpoint has."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast_checkpointer.engine.names import check_item_name
from holdfast_checkpointer.handlers.arguments import registered_arguments
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.foreign.handler import ForeignHandler, driven
from holdfast_checkpointer.handlers.registry import (
    DefaultCheckpointHandlerRegistry,
    get_registered_handler_cls,
    made,
)


class ItemHandlers:
    """Handlers by item; an item's first use fixes its own. Thread-safe.

    Args:
        names: Items whose handlers follow from their arguments.
        registry: Handlers by item and class of arguments; it is copied.
        handlers: Handlers by item; None as for `names`.

    Raises:
        ValueError: A name is none.
        TypeError: A handler is none.
    """

    def __init__(
        self,
        names: Iterable[str],
        registry: DefaultCheckpointHandlerRegistry | None,
        handlers: Mapping[str, Any],
    ) -> None:
        self._lock = threading.Lock()
        self._names = {check_item_name(name, metrics=True) for name in (*names, *handlers)}
        self._registry = DefaultCheckpointHandlerRegistry(registry)
        self._driven: dict[int, tuple[Any, CheckpointHandler]] = {}
        self._fixed: dict[str, CheckpointHandler] = {}
        for name, handler in handlers.items():
            if handler is not None:
                try:
                    self._fix(name, handler)
                except TypeError as error:
                    raise TypeError(f"item {name!r}: {error}") from error
        for (item, _), handler in self._registry.get_all_entries().items():
            if item is not None:
                self._fixed.setdefault(check_item_name(item, metrics=True), self._drive(handler))

    def choose(self, name: str, args: Any, *, save: bool) -> CheckpointHandler:
        """The handler of an item for these arguments.

        In order: the registry's for the item, the item's own if it takes them, the registry's
        for any item, and for a new item the one registered for such arguments everywhere.

        Raises:
            ValueError: The arguments are not for the item's handler, no handler is known, or
                the item is none of those named at construction.
            TypeError: They are no arguments.
        """
        check_item_name(name, metrics=True)
        if self._names and name not in self._names:
            raise ValueError(
                f"item {name!r} is not one of this handler's: {', '.join(sorted(self._names))}"
            )
        with self._lock:
            if args is None:
                return self._known(name)
            return self._registered(name, args, save=save) or self._own(name, args, save=save)

    def _known(self, name: str) -> CheckpointHandler:
        if name not in self._fixed:
            raise ValueError(
                f"item {name!r} was given None and has no handler yet: pass its arguments"
            )
        return self._fixed[name]

    def _registered(self, name: str, args: Any, *, save: bool) -> CheckpointHandler | None:
        if self._registry.has(name, args):
            return self._drive(self._registry.get(name, args))
        own = self._fixed.get(name)
        if own is not None and own.accepts(args, save=save) is None:
            return own
        if not self._registry.has(None, args):
            return None
        handler = self._registry.get(None, args)
        self._registry.add(name, args, handler)
        return self._fixed.setdefault(name, self._drive(handler))

    def _own(self, name: str, args: Any, *, save: bool) -> CheckpointHandler:
        handler = self._fixed.get(name)
        if handler is None:
            handler = self._fix(name, made(get_registered_handler_cls(args)))
        wrong = handler.accepts(args, save=save)
        if wrong is not None:
            shown = handler.handler if isinstance(handler, ForeignHandler) else handler
            raise ValueError(
                f"item {name!r} is handled by {type(shown).__name__}, which takes {wrong}"
            )
        return handler

    def _fix(self, name: str, handler: Any) -> CheckpointHandler:
        fixed = self._fixed[name] = self._drive(handler)
        for args in dict.fromkeys(registered_arguments(handler) or ()):
            if not self._registry.has(name, args):
                self._registry.add(name, args, handler)
        return fixed

    def _drive(self, handler: Any) -> CheckpointHandler:
        """One driven handler for each handler, whatever it is registered for."""
        known = self._driven.get(id(handler))
        if known is None:
            known = self._driven[id(handler)] = (handler, driven(handler, asynchronous=True))
        return known[1]

    def fixed(self) -> dict[str, CheckpointHandler]:
        """Handlers of the items that have one."""
        with self._lock:
            return dict(self._fixed)

    def all(self) -> list[CheckpointHandler]:
        """Every handler, once."""
        with self._lock:
            return [handler for _, handler in self._driven.values()]
