"""What a manager stores, however that was said: items by name, or one without a name."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.args import Composite, JsonRestore, JsonSave
from holdfast_checkpointer.async_checkpointer import AsyncCheckpointer
from holdfast_checkpointer.checkpointer import Checkpointer
from holdfast_checkpointer.engine.names import METRICS
from holdfast_checkpointer.handlers.arguments import is_arguments
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.registry import DefaultCheckpointHandlerRegistry
from holdfast_manager.checkpoint_manager.names import DEFAULT_ITEM_NAME

Named = Mapping[str, Any]


class ManagedItems:
    """The items of a manager and their handlers. Thread-safe.

    Whether they have names is known from the start, or from the first arguments or the first
    checkpoint that the manager sees; then it stays.

    Args:
        handler: Saves and restores them.
        unnamed: Whether there is one item without a name; None if that is not known yet.
    """

    def __init__(self, handler: CompositeCheckpointHandler, *, unnamed: bool | None) -> None:
        self.handler = handler
        self._unnamed = unnamed
        self._lock = threading.Lock()

    @property
    def unnamed(self) -> bool | None:
        """Whether there is one item without a name; None if that is not known yet."""
        return self._unnamed

    def decide(self, *, unnamed: bool) -> bool:
        """Fixes whether the item has no name, unless that is fixed; returns how it is."""
        with self._lock:
            if self._unnamed is None:
                self._unnamed = unnamed
            return self._unnamed

    def to_save(self, items: Any, kwargs: Mapping[str, Any] | None, args: Any) -> Composite:
        """The arguments of a save, by item.

        Raises:
            ValueError: None are given, or not those of this manager's items.
        """
        if items is None and args is None:
            raise ValueError("nothing to save was given: args=, such as args.StandardSave(tree)")
        given = self._checked(items, args)
        unnamed = not isinstance(given, Composite) if self._unnamed is None else self._unnamed
        self._check_named(given, unnamed=unnamed)
        if given is None:
            made = self._made(items, kwargs, unnamed=unnamed, save=True)
        else:
            made = Composite(**{DEFAULT_ITEM_NAME: given}) if unnamed else given
        if self.decide(unnamed=unnamed) is not unnamed:  # another thread was first
            return self.to_save(items, kwargs, args)
        return made

    def to_restore(self, items: Any, kwargs: Mapping[str, Any] | None, args: Any) -> Composite:
        """The arguments of a restore, by item; None for what the checkpoint says.

        Raises:
            ValueError: They are not those of this manager's items.
        """
        unnamed = bool(self._unnamed)
        given = self._checked(items, args)
        self._check_named(given, unnamed=unnamed)
        if given is not None:
            return Composite(**{DEFAULT_ITEM_NAME: given}) if unnamed else given
        if items is None and not kwargs:
            return Composite(**({DEFAULT_ITEM_NAME: None} if unnamed else {}))
        return self._made(items, kwargs, unnamed=unnamed, save=False)

    def _checked(self, items: Any, args: Any) -> Any:
        if is_arguments(items):
            raise ValueError(f"pass arguments by name: args={type(items).__name__}(...)")
        if args is None:
            return None
        if not is_arguments(args):
            raise ValueError(
                f"args takes arguments of a handler, such as args.StandardSave(tree), got "
                f"{type(args).__name__}"
            )
        if items is not None:
            raise ValueError("give args=, or items as the older interface has it, not both")
        return Composite(**args) if isinstance(args, Mapping) else args

    def _check_named(self, given: Any, *, unnamed: bool) -> None:
        if given is None or unnamed is not isinstance(given, Composite):
            return
        if unnamed:
            raise ValueError(
                "this manager has one item without a name: pass its arguments as they are, not in "
                "args.Composite(...)"
            )
        raise ValueError(
            "this manager has items with names: pass args.Composite(name=...), got "
            f"{type(given).__name__}"
        )

    def _made(
        self, items: Any, kwargs: Mapping[str, Any] | None, *, unnamed: bool, save: bool
    ) -> Composite:
        """Arguments from items and keywords, as the older interface takes them."""
        if unnamed:
            items = {} if items is None else {DEFAULT_ITEM_NAME: items}
            kwargs = {DEFAULT_ITEM_NAME: kwargs or {}}
        items = {} if items is None else items
        kwargs = kwargs or {}
        for name, value in (("items", items), ("keyword arguments", kwargs)):
            if not isinstance(value, Mapping):
                raise ValueError(f"{name} are a dict by item, got {type(value).__name__}")
        names = items if save else {**items, **kwargs}
        return Composite(
            **{
                name: self._arguments(
                    name, [items[name]] if name in items else [], kwargs.get(name), save=save
                )
                for name in names
            }
        )

    def _arguments(
        self, name: str, item: Sequence[Any], kwargs: Mapping[str, Any] | None, *, save: bool
    ) -> Any:
        handler = self.handler.handler_of(name)
        if handler is None:
            raise ValueError(
                f"item {name!r} has no handler yet: give args=, or a handler for it to the manager"
            )
        return handler.arguments(item, kwargs or {}, save=save)


@dataclass(frozen=True)
class NamedCheckpointers:
    """What checkpointers, as the oldest interface takes them, say besides their handlers.

    Attributes:
        handlers: By item.
        unnamed: Whether one was given, for an item without a name.
        background: Whether saves run in the background.
        timeout_secs: The longest of their deadlines; None if none has its own.
    """

    handlers: Named
    unnamed: bool
    background: bool
    timeout_secs: float | None

    @classmethod
    def of(cls, given: Any) -> NamedCheckpointers:
        """Takes them apart.

        Raises:
            ValueError: One is no checkpointer of holdfast's.
        """
        unnamed = not isinstance(given, Mapping)
        named = {DEFAULT_ITEM_NAME: given} if unnamed else dict(given)
        for name, value in named.items():
            if not isinstance(value, Checkpointer):
                found = f"{type(value).__module__}.{type(value).__qualname__}"
                raise ValueError(
                    f"checkpointers takes holdfast's Checkpointer or AsyncCheckpointer, or a dict "
                    f"of them by item; got {found} for item {name!r}"
                )
        later = [one for one in named.values() if isinstance(one, AsyncCheckpointer)]
        limits = [limit for one in later if (limit := one.timeout_secs) is not None]
        return cls(
            {name: one.handler for name, one in named.items()},
            unnamed,
            bool(later),
            max(limits, default=None),
        )


def refuse_two_ways(
    checkpointers: Any, item_names: Any, item_handlers: Any, handler_registry: Any
) -> None:
    """Refuses several answers to the one question what is stored.

    Raises:
        ValueError: The message names those that exclude each other.
    """
    ways = {
        "checkpointers": checkpointers,
        "item_names": item_names,
        "item_handlers": item_handlers,
        "handler_registry": handler_registry,
    }
    given = [name for name, value in ways.items() if value is not None]
    both = given == ["item_names", "item_handlers"]
    if len(given) > 1 and not (both and isinstance(item_handlers, Mapping)):
        raise ValueError(
            f"{' and '.join(given)} exclude each other; accepted: one of {', '.join(ways)}, or "
            "item_names with a dict of item_handlers"
        )


def items_of_registry(registry: DefaultCheckpointHandlerRegistry | None) -> ManagedItems:
    """Items whose handlers a registry knows, or follow from their arguments; it is copied."""
    copied = DefaultCheckpointHandlerRegistry(registry)
    for args in (JsonSave, JsonRestore):
        if not copied.has(METRICS, args):
            copied.add(METRICS, args, JsonCheckpointHandler(METRICS))
    return ManagedItems(CompositeCheckpointHandler(handler_registry=copied), unnamed=None)


def items_of_handlers(item_names: Any, item_handlers: Any) -> ManagedItems:
    """Items by name, with handlers or without; or a handler of one without a name."""
    if isinstance(item_names, str):
        raise ValueError(f"item_names is a list of names, got the text {item_names!r}")
    unnamed = item_handlers is not None and not isinstance(item_handlers, Mapping)
    if unnamed:
        handlers = {DEFAULT_ITEM_NAME: item_handlers}
    else:
        handlers = {**dict.fromkeys(item_names or ()), **(item_handlers or {})}
    return with_metrics(handlers, unnamed=unnamed)


def with_metrics(handlers: Named, *, unnamed: bool) -> ManagedItems:
    """Items with these handlers, and metrics beside them; without handlers, any names."""
    if not handlers:
        return ManagedItems(items_of_registry(None).handler, unnamed=unnamed)
    every = {METRICS: JsonCheckpointHandler(METRICS), **handlers}
    every[METRICS] = every[METRICS] or JsonCheckpointHandler(METRICS)
    names = [name for name, handler in every.items() if handler is None]
    made = {name: handler for name, handler in every.items() if handler is not None}
    return ManagedItems(CompositeCheckpointHandler(*names, **made), unnamed=unnamed)
