"""Several items in one checkpoint, each with its own handler."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.args import Composite
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import METRICS, check_item_name
from holdfast_checkpointer.handlers.base import CheckpointHandler, Item, StagedItem
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.parts import StagedParts
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.registry import (
    CheckpointHandlerRegistry,
    builtin_handlers,
    get_registered_args_cls,
    get_registered_handler_cls,
    handler_class_for,
)
from holdfast_checkpointer.options import Context
from holdfast_metadata.orbax import ITEM_METADATA_FILE
from holdfast_storage import ReadArea


@dataclass(frozen=True)
class _Request:
    """A restore, resolved as far as it can be without looking at the checkpoint.

    Attributes:
        items: Handler and request of each item that was asked for; None means all. An item
            without follows the checkpoint.
        known: The same, with default arguments, of items whose handler is fixed.
        defaults: Default requests by handler class, for what the checkpoint names.
    """

    items: Mapping[str, tuple[CheckpointHandler, Any] | None] | None
    known: Mapping[str, tuple[CheckpointHandler, Any]]
    defaults: Mapping[type[CheckpointHandler], tuple[CheckpointHandler, Any]]


class CompositeCheckpointHandler(CheckpointHandler):
    """Saves several items at once; the checkpoint has all of them or is not there.

    An item's handler is the one given here, else the one in the registry, else the one
    registered for its arguments; the first use fixes it. All items share the checkpoint's one
    commit.

    Args:
        *item_names: Items whose handlers follow from their arguments.
        handler_registry: Handlers by item and arguments, instead of names and handlers.
        **items_and_handlers: Items with their handlers.

    Raises:
        ValueError: A registry is given together with names or handlers, or a name is none.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(
        ...         "memory://doc/composite",
        ...         args=hf.args.Composite(
        ...             state=hf.args.StandardSave({"w": np.ones(2)}),
        ...             config=hf.args.JsonSave({"layers": 3}),
        ...         ),
        ...     )
        ...     found = checkpointer.restore("memory://doc/composite")
        >>> found.config, found["state"]
        ({'layers': 3}, {'w': array([1., 1.])})
    """

    save_args = Composite
    restore_args = Composite
    recorded_as = (
        "orbax.checkpoint._src.handlers.composite_checkpoint_handler.CompositeCheckpointHandler"
    )

    def __init__(
        self,
        *item_names: str,
        handler_registry: CheckpointHandlerRegistry | None = None,
        **items_and_handlers: CheckpointHandler | None,
    ) -> None:
        if handler_registry is not None and (item_names or items_and_handlers):
            raise ValueError("give a handler_registry, or item names and handlers, not both")
        self._registry = handler_registry or CheckpointHandlerRegistry()
        self._lock = threading.Lock()
        self._fixed: dict[str, CheckpointHandler] = {}
        self._names = {check_item_name(name) for name in (*item_names, *items_and_handlers)}
        for name, handler in items_and_handlers.items():
            if handler is not None:
                if not isinstance(handler, CheckpointHandler):
                    raise TypeError(
                        f"item {name!r}: expected a CheckpointHandler, got {type(handler).__name__}"
                    )
                self._fixed[name] = handler
        for (item, _), handler in self._registry.get_all_entries().items():
            if item is not None:
                self._fixed.setdefault(check_item_name(item), handler)

    def _handler_for(self, name: str, args: Any) -> CheckpointHandler:
        """The handler of an item, fixed by its first use.

        Raises:
            ValueError: The arguments are not for the item's handler, or are None and no
                handler is known.
        """
        check_item_name(name)
        if self._names and name not in self._names:
            raise ValueError(
                f"item {name!r} is not one of this handler's: {', '.join(sorted(self._names))}"
            )
        with self._lock:
            if args is not None and self._registry.has(name, args):
                return self._fixed.setdefault(name, self._registry.get(name, args))
            handler = self._fixed.get(name)
            if handler is None:
                if args is None:
                    raise ValueError(
                        f"item {name!r} was given None and has no handler yet: pass its arguments"
                    )
                handler = self._fixed[name] = get_registered_handler_cls(args)()
            return handler

    def stage(self, args: Any, context: Context) -> StagedItem:
        """See `stage_all`; for a composite inside another."""
        return StagedParts(
            {name: item.staged for name, item in self.stage_all(args, context).items()}
        )

    def stage_all(self, args: Any, context: Context) -> dict[str, Item]:
        """Stages every item.

        Raises:
            ValueError: There is none, or an item's arguments are not for its handler; the
                message names the item.
        """
        if not args:
            raise ValueError("a composite checkpoint needs at least one item, got none")
        found = {}
        for name, given in sorted(args.items()):
            if given is None:
                raise ValueError(f"item {name!r}: there is nothing to save in None; leave it out")
            handler = self._handler_for(name, given)
            _check_args(name, handler, given, save=True)
            with _about(name):
                found[name] = Item(handler.stage(given, context), handler.typestr())
        return found

    def prepare(self, args: Any) -> _Request:
        """Prepares what is asked for, and defaults for what the checkpoint will name."""
        items = {}
        for name, given in (args or {}).items():
            handler = self._handler_for(name, given)
            if given is None:
                given = get_registered_args_cls(handler)[1]()
            _check_args(name, handler, given, save=False)
            with _about(name):
                items[name] = (handler, handler.prepare(given))
        if items:
            return _Request(items, {}, {})
        return self._request(None)

    def prepare_inferred(self, args: Mapping[str, Any]) -> _Request:
        """Like `prepare`, but an item given as None is restored as the checkpoint says."""
        known = self.prepare(Composite(**{n: given for n, given in args.items() if given}))
        return self._request({**dict.fromkeys(args), **(known.items or {})} or None)

    def _request(
        self, items: Mapping[str, tuple[CheckpointHandler, Any] | None] | None
    ) -> _Request:
        return _Request(
            items,
            {name: found for name, handler in self._fixed.items() if (found := _default(handler))},
            {kind: found for kind in builtin_handlers() if (found := _default(kind()))},
        )

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Not for a part: a composite item is read through its checkpoint."""
        raise NotImplementedError("a composite inside an item is not readable on its own")

    async def fetch_all(
        self, stored: StoredCheckpoint, request: _Request, context: Context
    ) -> Composite:
        """Reads the items asked for, or all.

        Raises:
            KeyError: An item is not in the checkpoint; the message lists those that are.
            ValueError: The handler of an item is not known here.
        """
        asked = request.items
        if asked is None:
            asked = dict.fromkeys(name for name in stored.items if name)
        for name in asked:
            stored.require_item(name)
        wanted = {
            name: await _resolve(stored, name, request) if found is None else found
            for name, found in asked.items()
        }
        values = await asyncio.gather(
            *(
                handler.fetch(stored.item_area(name), prepared, context)
                for name, (handler, prepared) in wanted.items()
            )
        )
        return Composite(**dict(zip(wanted, values, strict=True)))

    async def describe(self, area: ReadArea) -> Any:
        """Items describe themselves, one by one."""
        return None

    async def describe_all(self, stored: StoredCheckpoint) -> Composite:
        """What the items of a checkpoint say of themselves; None for one that says nothing.

        Raises:
            ValueError: The checkpoint has no items: another handler saved it.
        """
        if stored.flat:
            raise ValueError(
                f"{stored.area.label} has no items; it was saved by "
                f"{stored.recorded_handler('') or 'a handler that is not recorded'}"
            )
        names = [name for name in stored.items if name]
        found = await asyncio.gather(*(self._describe_one(stored, name) for name in names))
        return Composite(**dict(zip(names, found, strict=True)))

    async def _describe_one(self, stored: StoredCheckpoint, name: str) -> Any:
        handler = self._fixed.get(name)
        if handler is None:
            kind = await _recorded_class(stored, name)
            handler = None if kind is None else kind()
        try:
            return None if handler is None else await handler.describe_item(stored.item_area(name))
        except NotImplementedError:
            return None

    def close(self) -> None:
        """Closes every item's handler."""
        for handler in self._fixed.values():
            handler.close()


def _default(handler: CheckpointHandler) -> tuple[CheckpointHandler, Any] | None:
    """A handler and its default request; None if it cannot do without arguments."""
    try:
        return handler, handler.prepare(get_registered_args_cls(handler)[1]())
    except (TypeError, ValueError, ImportError):
        return None


async def _resolve(
    stored: StoredCheckpoint, name: str, request: _Request
) -> tuple[CheckpointHandler, Any]:
    """Handler and default request of an item that was not asked for by name."""
    if name in request.known:
        return request.known[name]
    recorded = stored.recorded_handler(name)
    kind = await _recorded_class(stored, name)
    found = request.defaults.get(kind) if kind is not None else None
    if found is None:
        why = "needs arguments" if kind is not None else "is not known here"
        raise ValueError(
            f"item {name!r} was saved by {recorded or 'an unnamed handler'}, which {why}: pass "
            f"args.Composite({name}=...) with its arguments, or name only the items you want"
        )
    return found


async def _recorded_class(stored: StoredCheckpoint, name: str) -> type[CheckpointHandler] | None:
    """The handler that a checkpoint names for an item, or that its files call for."""
    kind = handler_class_for(stored.recorded_handler(name))
    if kind is None and ITEM_METADATA_FILE in await stored.item_area(name).names():
        return PyTreeCheckpointHandler
    return JsonCheckpointHandler if kind is None and name == METRICS else kind


def _check_args(name: str, handler: CheckpointHandler, args: Any, *, save: bool) -> None:
    expected = get_registered_args_cls(handler)[0 if save else 1]
    if not isinstance(args, expected):
        raise ValueError(
            f"item {name!r} is handled by {type(handler).__name__}, which takes "
            f"{expected.__name__}, got {type(args).__name__}"
        )


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Adds the item's name to what is raised inside; the error stays what it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in item {name!r}")
        raise
