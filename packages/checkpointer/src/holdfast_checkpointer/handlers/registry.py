"""Which handler takes which arguments, and which one a checkpoint's handler string means."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.errors import AlreadyExistsError, NoEntryError
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.recorded import match_recorded

A = TypeVar("A", bound=type[CheckpointArgs])
_BUILTIN = {
    "array": ("ArrayCheckpointHandler",),
    "json": ("JsonCheckpointHandler",),
    "proto": ("ProtoCheckpointHandler",),
    "pytree": ("PyTreeCheckpointHandler",),
    "random_key": ("JaxRandomKeyCheckpointHandler", "NumpyRandomKeyCheckpointHandler"),
    "standard": ("StandardCheckpointHandler",),
}


@functools.cache
def builtin_handlers() -> tuple[type[CheckpointHandler], ...]:
    """The handlers that come with holdfast, except the composite one."""
    found = []
    for module, names in _BUILTIN.items():
        imported = importlib.import_module(f"holdfast_checkpointer.handlers.{module}")
        found += [getattr(imported, name) for name in names]
    return tuple(found)


class _ArgumentClasses:
    """Handler classes by the class of their arguments."""

    def __init__(self) -> None:
        self.saving: dict[type, type[CheckpointHandler]] = {}
        self.restoring: dict[type, type[CheckpointHandler]] = {}

    def find(self, args: type) -> type[CheckpointHandler] | None:
        self._fill()
        for base in args.__mro__:
            found = self.saving.get(base) or self.restoring.get(base)
            if found is not None:
                return found
        return None

    def add(self, args: type, handler: type[CheckpointHandler], *, save: bool) -> None:
        self._fill()
        (self.saving if save else self.restoring)[args] = handler

    def by_handler(self, handler: type) -> tuple[type | None, type | None]:
        self._fill()

        def first(known: Mapping[type, type]) -> type | None:
            return next((args for args, found in known.items() if found is handler), None)

        return first(self.saving), first(self.restoring)

    def _fill(self) -> None:
        if not self.saving:
            for handler in builtin_handlers():
                self.saving[handler.save_args] = handler
                self.restoring[handler.restore_args] = handler

    def handlers(self) -> set[type[CheckpointHandler]]:
        self._fill()
        return {*self.saving.values(), *self.restoring.values()}


_known = _ArgumentClasses()


def register_with_handler(
    handler: type[CheckpointHandler], for_save: bool = False, for_restore: bool = False
) -> Callable[[A], A]:
    """Decorates a class of arguments: says which handler takes them.

    Args:
        handler: A `CheckpointHandler` class that can be made without arguments.
        for_save: They are arguments of its save.
        for_restore: They are arguments of its restore.

    Raises:
        ValueError: Neither `for_save` nor `for_restore`.
        TypeError: The class is no `CheckpointArgs`, or the handler no `CheckpointHandler`.
    """
    if not for_save and not for_restore:
        raise ValueError("say for_save=True, for_restore=True, or both")
    if not issubclass(handler, CheckpointHandler):
        raise TypeError(f"{handler!r} is no subclass of CheckpointHandler")

    def decorate(args: A) -> A:
        if not issubclass(args, CheckpointArgs):
            raise TypeError(f"{args!r} is no subclass of CheckpointArgs")
        if for_save:
            _known.add(args, handler, save=True)
        if for_restore:
            _known.add(args, handler, save=False)
        return args

    return decorate


def get_registered_handler_cls(args: Any) -> type[CheckpointHandler]:
    """The handler class that takes these arguments.

    Raises:
        TypeError: They are no `CheckpointArgs`.
        ValueError: No handler is registered for them.
    """
    kind = args if isinstance(args, type) else type(args)
    if not issubclass(kind, CheckpointArgs):
        raise TypeError(f"expected CheckpointArgs, got {kind.__name__}")
    found = _known.find(kind)
    if found is None:
        raise ValueError(
            f"no handler is registered for {kind.__name__}; decorate it with register_with_handler"
        )
    return found


def get_registered_args_cls(handler: Any) -> tuple[type[CheckpointArgs], type[CheckpointArgs]]:
    """The classes of arguments that a handler takes: to save, and to restore.

    Raises:
        ValueError: One of them is not registered.
    """
    kind = handler if isinstance(handler, type) else type(handler)
    save, restore = _known.by_handler(kind)
    save = save or getattr(kind, "save_args", None)
    restore = restore or getattr(kind, "restore_args", None)
    if save is None or restore is None:
        raise ValueError(f"{kind.__name__} has no registered arguments")
    return save, restore


def has_registered_args(handler: Any) -> bool:
    """Whether `get_registered_args_cls` would answer."""
    try:
        get_registered_args_cls(handler)
    except ValueError:
        return False
    return True


def handler_class_for(recorded: str | None) -> type[CheckpointHandler] | None:
    """The class that a checkpoint's handler string means, here; see `match_recorded`."""
    return match_recorded(recorded, _known.handlers(), builtin_handlers())


class CheckpointHandlerRegistry:
    """Handlers by item name and class of arguments; None as a name stands for any item.

    Args:
        other: Another registry whose entries this one begins with.
    """

    def __init__(self, other: CheckpointHandlerRegistry | None = None) -> None:
        self._entries: dict[tuple[str | None, type[CheckpointArgs]], CheckpointHandler] = {}
        if other is not None:
            self._entries.update(other.get_all_entries())

    def add(
        self,
        item: str | None,
        args: type[CheckpointArgs] | CheckpointArgs,
        handler: CheckpointHandler | type[CheckpointHandler] | None = None,
    ) -> None:
        """Adds an entry.

        Args:
            item: Of one item, or None for all.
            args: The class of the arguments.
            handler: What takes them; None means the one registered for them globally.

        Raises:
            AlreadyExistsError: There is an entry.
            ValueError: No handler is given and none is registered, or it cannot be made
                without arguments.
        """
        kind = args if isinstance(args, type) else type(args)
        if (item, kind) in self._entries:
            raise AlreadyExistsError(f"item {item!r} has a handler for {kind.__name__} already")
        if handler is None:
            handler = get_registered_handler_cls(kind)
        self._entries[item, kind] = handler() if isinstance(handler, type) else handler

    def get(
        self, item: str | None, args: type[CheckpointArgs] | CheckpointArgs
    ) -> CheckpointHandler:
        """The handler of an item and a class of arguments.

        Raises:
            NoEntryError: There is none, neither for the item nor for any.
        """
        kind = args if isinstance(args, type) else type(args)
        for key in ((item, kind), (None, kind)):
            if key in self._entries:
                return self._entries[key]
        raise NoEntryError(f"no handler is registered for item {item!r} and {kind.__name__}")

    def has(self, item: str | None, args: type[CheckpointArgs] | CheckpointArgs) -> bool:
        """Whether `get` would answer."""
        kind = args if isinstance(args, type) else type(args)
        return (item, kind) in self._entries or (None, kind) in self._entries

    def get_all_entries(
        self,
    ) -> Mapping[tuple[str | None, type[CheckpointArgs]], CheckpointHandler]:
        """All entries; a copy."""
        return dict(self._entries)


class DefaultCheckpointHandlerRegistry(CheckpointHandlerRegistry):
    """A registry that begins with every handler of holdfast's, for any item."""

    def __init__(self, other: CheckpointHandlerRegistry | None = None) -> None:
        super().__init__(other)
        for handler in builtin_handlers():
            for args in (handler.save_args, handler.restore_args):
                if (None, args) not in self._entries:
                    self._entries[None, args] = handler()


def create_default_handler_registry(
    **items: CheckpointHandler,
) -> CheckpointHandlerRegistry:
    """A registry in which each item has its handler, and every other the default one."""
    registry = DefaultCheckpointHandlerRegistry()
    for item, handler in items.items():
        for args in get_registered_args_cls(handler):
            registry.add(item, args, handler)
    return registry
