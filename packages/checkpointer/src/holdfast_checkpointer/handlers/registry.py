"""Which handler takes which arguments, and which one a checkpoint's handler string means."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from holdfast_checkpointer.errors import AlreadyExistsError, NoEntryError
from holdfast_checkpointer.handlers.arguments import is_arguments, is_arguments_class
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.foreign import orbax
from holdfast_checkpointer.handlers.foreign.handler import ForeignHandler
from holdfast_checkpointer.handlers.foreign.recognition import check_handler_class, typestr_of
from holdfast_checkpointer.handlers.recorded import match_recorded

A = TypeVar("A", bound=type)
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


class _Registered:
    """Handler classes by the class of their arguments, and by the string they are recorded by."""

    def __init__(self) -> None:
        self.saving: dict[type, type] = {}
        self.restoring: dict[type, type] = {}
        self.by_typestr: dict[str, type] = {}

    def find(self, args: type) -> type | None:
        self._fill()
        for base in args.__mro__:
            found = self.saving.get(base) or self.restoring.get(base)
            if found is not None:
                return found
        return orbax.handler_class(args)

    def add(self, args: type, handler: type, *, save: bool, restore: bool) -> None:
        self._fill()
        self._name(handler)
        if save:
            self.saving[args] = handler
        if restore:
            self.restoring[args] = handler

    def _name(self, handler: type) -> None:
        """Takes note of a handler's string.

        Raises:
            ValueError: Another class has it. The same definition executed again, as in a
                notebook, takes the place of the one before.
        """
        recorded = typestr_of(handler)
        other = self.by_typestr.get(recorded, handler)
        if (other.__module__, other.__qualname__) != (handler.__module__, handler.__qualname__):
            raise ValueError(
                f"{handler.__module__}.{handler.__qualname__} has the handler string "
                f"{recorded!r}, by which {other.__module__}.{other.__qualname__} is known "
                "already: let typestr() give another"
            )
        self.by_typestr[recorded] = handler

    def arguments(self, handler: type) -> tuple[type | None, type | None]:
        """To save and to restore; those of the class itself, else of its bases."""
        self._fill()
        found: tuple[type | None, type | None] = (None, None)
        for base in handler.__mro__:
            own = vars(base)
            save = _first(self.saving, base) or own.get("save_args")
            restore = _first(self.restoring, base) or own.get("restore_args")
            found = (found[0] or save, found[1] or restore)
        if None in found:
            found = orbax.arguments_classes(handler) or found
        return found

    def _fill(self) -> None:
        if self.saving:
            return
        composite = importlib.import_module("holdfast_checkpointer.handlers.composite")
        for handler in (*builtin_handlers(), composite.CompositeCheckpointHandler):
            self.saving[handler.save_args] = handler
            self.restoring[handler.restore_args] = handler
            self.by_typestr[handler.typestr()] = handler

    def handlers(self) -> list[type]:
        """Holdfast's own first, then those registered, the newest first."""
        self._fill()
        own = builtin_handlers()
        return [*own, *(kind for kind in reversed(self.by_typestr.values()) if kind not in own)]


def _first(known: Mapping[type, type], handler: type) -> type | None:
    return next((args for args, found in known.items() if found is handler), None)


_known = _Registered()


def register_with_handler(
    handler: type, for_save: bool = False, for_restore: bool = False
) -> Callable[[A], A]:
    """Decorates a class of arguments: says which handler takes them.

    The handler's string is registered too: a checkpoint that was saved by it is restored by it
    without arguments. What is registered with Orbax's decorator is known as well, once the
    program has imported Orbax.

    Args:
        handler: A class of handlers, of holdfast's or written against Orbax's protocol. It must
            be possible to make one without arguments.
        for_save: They are arguments of its save.
        for_restore: They are arguments of its restore.

    Raises:
        ValueError: Neither `for_save` nor `for_restore`; or a different class has the same
            handler string.
        TypeError: The class is no `CheckpointArgs`, or the handler no `CheckpointHandler`.
    """
    if not for_save and not for_restore:
        raise ValueError("say for_save=True, for_restore=True, or both")
    check_handler_class(handler)

    def decorate(args: A) -> A:
        if not is_arguments_class(args):
            raise TypeError(f"{args!r} is no subclass of CheckpointArgs")
        _known.add(args, handler, save=for_save, restore=for_restore)
        return args

    return decorate


def get_registered_handler_cls(args: Any) -> Any:
    """The handler class that takes these arguments.

    Raises:
        TypeError: They are no `CheckpointArgs`.
        ValueError: No handler is registered for them.
    """
    kind = args if isinstance(args, type) else type(args)
    if not is_arguments(kind):
        raise TypeError(f"expected CheckpointArgs, got {kind.__name__}")
    found = _known.find(kind)
    if found is None:
        raise ValueError(
            f"no handler is registered for {kind.__name__}; decorate it with register_with_handler"
        )
    return found


def get_registered_args_cls(handler: Any) -> tuple[type, type]:
    """The classes of arguments that a handler takes: to save, and to restore.

    Args:
        handler: A handler or a class of them.

    Raises:
        ValueError: One of them is not registered.
    """
    if isinstance(handler, ForeignHandler):
        handler = handler.handler
    kind = handler if isinstance(handler, type) else type(handler)
    save, restore = _known.arguments(kind)
    if save is None or restore is None:
        lacks = "to save" if save is None else "to restore"
        raise ValueError(
            f"{kind.__name__} has no registered arguments {lacks}; decorate a class of them with "
            "register_with_handler"
        )
    return save, restore


def has_registered_args(handler: Any) -> bool:
    """Whether `get_registered_args_cls` would answer."""
    try:
        get_registered_args_cls(handler)
    except ValueError:
        return False
    return True


def handler_class_for(recorded: str | None) -> Any:
    """The class that a checkpoint's handler string means, here; see `match_recorded`."""
    found = match_recorded(recorded, _known.handlers(), ())
    if found is None and recorded is not None:
        known = match_recorded(recorded, (), builtin_handlers())
        found = known or orbax.handler_of_typestr(recorded)
    return found


class DefaultCheckpointHandlerRegistry:
    """Handlers by item name and class of arguments; empty at first.

    Args:
        other: Another registry whose entries this one begins with.

    Examples:
        >>> import holdfast as hf
        >>> registry = hf.DefaultCheckpointHandlerRegistry()
        >>> registry.add("config", hf.args.JsonSave, hf.JsonCheckpointHandler("config.json"))
        >>> registry.has("config", hf.args.JsonSave), registry.has(None, hf.args.JsonSave)
        (True, False)
    """

    def __init__(self, other: DefaultCheckpointHandlerRegistry | None = None) -> None:
        self._entries: dict[tuple[str | None, type], Any] = {}
        if other is not None:
            for (item, args), handler in other.get_all_entries().items():
                self.add(item, args, handler)

    def add(self, item: str | None, args: Any, handler: Any = None) -> None:
        """Adds an entry.

        Args:
            item: Of one item; None for any item that has no entry of its own.
            args: The class of the arguments, or arguments of it.
            handler: What takes them, or its class; None means the one registered for them
                globally.

        Raises:
            AlreadyExistsError: There is an entry.
            ValueError: No handler is given and none is registered, or it cannot be made
                without arguments.
            TypeError: It is no handler.
        """
        kind = _class_of(args)
        if (item, kind) in self._entries:
            raise AlreadyExistsError(f"item {item!r} has a handler for {kind.__name__} already")
        if handler is None:
            try:
                handler = get_registered_handler_cls(kind)
            except TypeError as error:
                raise ValueError(str(error)) from error
        check_handler_class(handler if isinstance(handler, type) else type(handler))
        self._entries[item, kind] = handler if not isinstance(handler, type) else made(handler)

    def get(self, item: str | None, args: Any) -> Any:
        """The handler of exactly this item and class of arguments.

        Raises:
            NoEntryError: There is none.
        """
        kind = _class_of(args)
        if (item, kind) not in self._entries:
            raise NoEntryError(f"no handler is registered for item {item!r} and {kind.__name__}")
        return self._entries[item, kind]

    def has(self, item: str | None, args: Any) -> bool:
        """Whether `get` would answer."""
        return (item, _class_of(args)) in self._entries

    def get_all_entries(self) -> Mapping[tuple[str | None, type], Any]:
        """All entries; a copy."""
        return dict(self._entries)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._entries})"


# Orbax's name for the interface that its registry has.
CheckpointHandlerRegistry = DefaultCheckpointHandlerRegistry


def _class_of(args: Any) -> type:
    return args if isinstance(args, type) else type(args)


def made(handler: type) -> Any:
    """A handler made without arguments.

    Raises:
        ValueError: It needs some.
    """
    try:
        return handler()
    except TypeError as error:
        raise ValueError(
            f"{handler.__name__} cannot be made without arguments ({error}): give one that is made"
        ) from error


def create_default_handler_registry(**items: Any) -> DefaultCheckpointHandlerRegistry:
    """A registry in which each item has its handler, for saving and for restoring.

    Raises:
        ValueError: A handler has no registered arguments.
    """
    registry = DefaultCheckpointHandlerRegistry()
    for item, handler in items.items():
        for args in dict.fromkeys(get_registered_args_cls(handler)):
            registry.add(item, args, handler)
    return registry
