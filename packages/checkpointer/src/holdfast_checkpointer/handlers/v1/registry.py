"""Which handlers there are for named items: globally, or for the calls of one context."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, TypeVar

from holdfast_checkpointer.errors import AlreadyExistsError, NoEntryError

H = TypeVar("H", bound=type)
Entry = tuple[type[Any], str | None]


class CheckpointableHandlerRegistry:
    """Classes of handlers, each for any item or for the items of one name.

    Of several that take an item the one that was added last is used; one that was added for the
    item's name goes first. A context carries one as `CheckpointablesOptions.registry`.

    Examples:
        >>> import holdfast as hf
        >>> registry = hf.handlers.local_registry()
        >>> _ = registry.add(hf.handlers.JsonHandler, checkpointable_name="config")
        >>> with hf.Context(checkpointables=hf.options.CheckpointablesOptions(registry=registry)):
        ...     hf.save_checkpointables("memory://doc/registry", {"config": {"layers": 3}})
        >>> hf.load_checkpointables("memory://doc/registry")
        {'config': {'layers': 3}}
    """

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._secondary: dict[type, tuple[str, ...]] = {}

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        """Adds a class of handlers.

        Args:
            handler_type: The class. It is made without arguments when it is used.
            checkpointable_name: The one item it is for, whether it takes what that is or not;
                None for any item that it takes.
            secondary_typestrs: Handler strings of checkpoints, besides the class's own path,
                that mean it: those of classes it has replaced.

        Returns:
            The registry.

        Raises:
            ValueError: It is no class, or a handler string is no text.
            AlreadyExistsError: The name has a handler, or without a name: the class is there.
        """
        if not isinstance(handler_type, type):
            raise ValueError(f"a handler is added as a class, got {handler_type!r}")
        if isinstance(secondary_typestrs, str):
            raise ValueError(f"secondary_typestrs is a list of texts, got {secondary_typestrs!r}")
        if checkpointable_name:
            if self.has(checkpointable_name):
                raise AlreadyExistsError(
                    f"item {checkpointable_name!r} has a handler already: "
                    f"{self.get(checkpointable_name).__qualname__}"
                )
        elif any(entry is handler_type for entry, _ in self._entries):
            raise AlreadyExistsError(f"{handler_type.__qualname__} is registered already")
        self._entries.append((handler_type, checkpointable_name))
        if secondary_typestrs is not None:
            self._secondary[handler_type] = tuple(secondary_typestrs)
        return self

    def get(self, checkpointable_name: str) -> type[Any]:
        """The handler that was added for an item's name.

        Raises:
            NoEntryError: None was; the message lists the names that have one.
        """
        for handler, name in self._entries:
            if name == checkpointable_name:
                return handler
        named = sorted(name for _, name in self._entries if name) or "none"
        raise NoEntryError(
            f"no handler is registered for items called {checkpointable_name!r}; names with one: "
            f"{named}"
        )

    def has(self, checkpointable_name: str) -> bool:
        """Whether `get` would answer."""
        return any(name == checkpointable_name for _, name in self._entries)

    def get_all_entries(self) -> Sequence[Entry]:
        """Classes and the names they were added for, in that order; a copy."""
        return list(self._entries)

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """The handler strings, besides its own path, that mean a class."""
        return list(self._secondary.get(handler_type, ()))

    def __repr__(self) -> str:
        shown = ", ".join(
            handler.__qualname__ + (f" for {name!r}" if name else "")
            for handler, name in self.get_all_entries()
        )
        return f"{type(self).__name__}({shown})"


class GlobalView(CheckpointableHandlerRegistry):
    """The global registry as it is at each moment; nothing is added through this."""

    def add(
        self,
        handler_type: type[Any],
        *,
        checkpointable_name: str | None = None,
        secondary_typestrs: Sequence[str] | None = None,
    ) -> CheckpointableHandlerRegistry:
        """Refuses.

        Raises:
            NotImplementedError: Always; the message says where handlers are added.
        """
        raise NotImplementedError(
            "the registry of a default context is read-only: add handlers with "
            "handlers.register_handler, or put a handlers.local_registry() into the context"
        )

    def get(self, checkpointable_name: str) -> type[Any]:
        """See `CheckpointableHandlerRegistry.get`."""
        return global_registry().get(checkpointable_name)

    def has(self, checkpointable_name: str) -> bool:
        """See `CheckpointableHandlerRegistry.has`."""
        return global_registry().has(checkpointable_name)

    def get_all_entries(self) -> Sequence[Entry]:
        """See `CheckpointableHandlerRegistry.get_all_entries`."""
        return global_registry().get_all_entries()

    def get_secondary_typestrs(self, handler_type: type[Any]) -> Sequence[str]:
        """See `CheckpointableHandlerRegistry.get_secondary_typestrs`."""
        return global_registry().get_secondary_typestrs(handler_type)


_global = CheckpointableHandlerRegistry()
_lock = threading.Lock()
GLOBAL_VIEW = GlobalView()


def global_registry() -> CheckpointableHandlerRegistry:
    """The registry of every context that has none of its own; holdfast's handlers are in it."""
    with _lock:
        if not _global.get_all_entries():
            # Late, for the handlers import the options, which name a registry.
            from holdfast_checkpointer.handlers.v1.builtin import add_builtin

            add_builtin(_global)
    return _global


def local_registry(
    other_registry: CheckpointableHandlerRegistry | None = None,
    *,
    include_global_registry: bool = True,
) -> CheckpointableHandlerRegistry:
    """A new registry, for a context.

    Args:
        other_registry: One whose handlers it begins with, after the global ones.
        include_global_registry: Whether it begins with the global handlers.

    Raises:
        AlreadyExistsError: Both have the same class, or a handler for the same name.
    """
    made = CheckpointableHandlerRegistry()
    for source in (global_registry() if include_global_registry else None, other_registry):
        for handler, name in source.get_all_entries() if source is not None else ():
            made.add(
                handler,
                checkpointable_name=name,
                secondary_typestrs=source.get_secondary_typestrs(handler) if source else None,
            )
    return made


def register_handler(
    cls: H,
    *,
    checkpointable_name: str | None = None,
    secondary_typestrs: Sequence[str] | None = None,
) -> H:
    """Adds a class to the global registry; also a decorator.

    Args:
        cls: A class of `CheckpointableHandler`s.
        checkpointable_name: See `CheckpointableHandlerRegistry.add`.
        secondary_typestrs: See `CheckpointableHandlerRegistry.add`.

    Returns:
        The class.

    Raises:
        ValueError: As `CheckpointableHandlerRegistry.add`.
    """
    global_registry().add(
        cls, checkpointable_name=checkpointable_name, secondary_typestrs=secondary_typestrs
    )
    return cls
