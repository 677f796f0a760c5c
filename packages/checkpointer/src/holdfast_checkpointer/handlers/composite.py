"""Several items in one checkpoint, each with its own handler."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.args import CheckpointArgs, Composite, CompositeItemMetadata
from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import METRICS, ORBAX_TEMPORARY
from holdfast_checkpointer.handlers.arguments import is_arguments
from holdfast_checkpointer.handlers.base import (
    CheckpointHandler,
    Item,
    StagedItem,
    engine_methods,
)
from holdfast_checkpointer.handlers.constructor_options import CompositeOptions, check_group
from holdfast_checkpointer.handlers.foreign.folders import UNFINALIZED
from holdfast_checkpointer.handlers.foreign.handler import driven
from holdfast_checkpointer.handlers.item_handlers import ItemHandlers
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.parts import StagedParts
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.registry import (
    DefaultCheckpointHandlerRegistry,
    builtin_handlers,
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
    defaults: Mapping[type, tuple[CheckpointHandler, Any]]


@engine_methods
class CompositeCheckpointHandler(CheckpointHandler):
    """Saves several items at once; the checkpoint has all of them or is not there.

    An item's handler is the one given here, else the one in the registry, else the one
    registered for its arguments; the first use fixes it. All items share the checkpoint's one
    commit. One handler may run several saves at once.

    Args:
        *item_names: Items whose handlers follow from their arguments.
        composite_options: See `CompositeOptions`.
        handler_registry: Handlers by item and arguments, instead of names and handlers. It is
            copied.
        **items_and_handlers: Items with their handlers, of holdfast's or written against Orbax's
            protocol.

    Raises:
        ValueError: A registry is given together with names or handlers, or a name is none.
        TypeError: A handler is none.

    Examples:
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
        composite_options: CompositeOptions | None = None,
        handler_registry: DefaultCheckpointHandlerRegistry | None = None,
        **items_and_handlers: Any,
    ) -> None:
        if handler_registry is not None and (item_names or items_and_handlers):
            raise ValueError("give a handler_registry, or item names and handlers, not both")
        check_group("composite_options", composite_options, CompositeOptions)
        if composite_options is not None:
            self.taking_part = composite_options.multiprocessing_options
        self._items = ItemHandlers(item_names, handler_registry, items_and_handlers)

    def arguments(
        self, positional: Sequence[Any], keyword: Mapping[str, Any], *, save: bool
    ) -> CheckpointArgs:
        """See `CheckpointHandler.arguments`; Orbax's `Composite` is taken as one of these."""

        def ours(value: Any) -> Any:
            theirs = is_arguments(value) and not isinstance(value, CheckpointArgs)
            return Composite(**value) if theirs and isinstance(value, Mapping) else value

        return super().arguments(
            [ours(value) for value in positional],
            {name: ours(value) for name, value in keyword.items()},
            save=save,
        )

    def handler_of(self, name: str) -> CheckpointHandler | None:
        """The handler of an item, if that is fixed already."""
        return self._items.fixed().get(name)

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
            handler = self._items.choose(name, given, save=True)
            with _about(name):
                found[name] = Item(handler.stage(given, context), handler.recorded())
        return found

    def prepare(self, args: Any) -> _Request:
        """Prepares what is asked for, and defaults for what the checkpoint will name."""
        items = {}
        for name, given in (args or {}).items():
            handler = self._items.choose(name, given, save=False)
            with _about(name):
                if given is None:
                    given = _default_arguments(handler)
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
        fixed = self._items.fixed()
        return _Request(
            items,
            {name: found for name, handler in fixed.items() if (found := _default(handler))},
            {kind: found for kind in builtin_handlers() if (found := _default(kind()))},
        )

    def reads(self, stored: StoredCheckpoint, request: _Request) -> list[str]:
        """See `CheckpointHandler.reads`."""
        if request.items is not None:
            return sorted(set(request.items) & set(stored.items))
        return [name for name in stored.items if name]

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
            for name, found in sorted(asked.items())
        }
        values = await run_all(
            handler.fetch(stored.item_area(name), prepared, context)
            for name, (handler, prepared) in wanted.items()
        )
        return Composite(**dict(zip(wanted, values, strict=True)))

    async def describe(self, area: ReadArea) -> Any:
        """Items describe themselves, one by one."""
        return None

    async def describe_all(self, stored: StoredCheckpoint) -> CompositeItemMetadata:
        """What the items of a checkpoint say of themselves; None for one that says nothing.

        Raises:
            ValueError: The checkpoint has no items, for another handler saved it; or an item is
                still being saved.
        """
        if stored.flat:
            raise ValueError(
                f"{stored.area.label} has no items; it was saved by "
                f"{stored.recorded_handler('') or 'a handler that is not recorded'}"
            )
        names = [name for name in stored.items if name]
        for name in names:
            if ORBAX_TEMPORARY in name or UNFINALIZED in await stored.item_area(name).names():
                raise ValueError(
                    f"item {name!r} in {stored.area.label} is a temporary one: call finalize() "
                    "before metadata()"
                )
        found = await run_all(self._describe_one(stored, name) for name in names)
        return CompositeItemMetadata(**dict(zip(names, found, strict=True)))

    async def describe_directly(self, stored: StoredCheckpoint) -> Any:
        """See `CheckpointHandler.describe_directly`; a `StepMetadata`, as of a checkpoint."""
        from holdfast_checkpointer.metadata import describe_step

        found = await describe_step(stored, self)
        if found.item_handlers is not None:
            return found
        fixed = self._items.fixed()  # a plain folder does not say who saved into it
        known = {
            name: fixed[name].recorded() if name in fixed else None for name in found.item_metadata
        }
        return dataclasses.replace(found, item_handlers=known)

    async def _describe_one(self, stored: StoredCheckpoint, name: str) -> Any:
        handler = self._items.fixed().get(name)
        if handler is None:
            kind = await _recorded_class(stored, name)
            handler = None if kind is None else driven(kind())
        try:
            return None if handler is None else await handler.describe_item(stored.item_area(name))
        except (NotImplementedError, FileNotFoundError):
            return None

    def close(self) -> None:
        """Closes every item's handler."""
        for handler in self._items.all():
            handler.close()


def _default_arguments(handler: CheckpointHandler) -> Any:
    """The arguments of a restore for which none were given.

    Raises:
        ValueError: They cannot be made without values.
    """
    try:
        return handler.default_arguments()
    except TypeError as error:
        raise ValueError(
            f"its arguments cannot be made without values ({error}): pass them"
        ) from error


def _default(handler: CheckpointHandler) -> tuple[CheckpointHandler, Any] | None:
    """A handler and its default request; None if it cannot do without arguments."""
    try:
        return handler, handler.prepare(handler.default_arguments())
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
    found = None
    if kind is not None:
        found = request.defaults.get(kind) or _default_of(kind)
    if found is None:
        why = "needs arguments" if kind is not None else "is not known here"
        raise ValueError(
            f"item {name!r} was saved by {recorded or 'an unnamed handler'}, which {why}: pass "
            f"args.Composite({name}=...) with its arguments, or name only the items you want"
        )
    return found


def _default_of(kind: type) -> tuple[CheckpointHandler, Any] | None:
    """The same of a class; None if no handler can be made without arguments."""
    if kind in builtin_handlers():
        return None  # it was tried where the caller is
    try:
        return _default(driven(kind(), asynchronous=True))
    except TypeError:
        return None


async def _recorded_class(stored: StoredCheckpoint, name: str) -> type | None:
    """The handler that a checkpoint names for an item, or that its files call for."""
    kind: type | None = handler_class_for(stored.recorded_handler(name))
    if kind is None and ITEM_METADATA_FILE in await stored.item_area(name).names():
        return PyTreeCheckpointHandler
    return JsonCheckpointHandler if kind is None and name == METRICS else kind


@contextlib.contextmanager
def _about(name: str) -> Iterator[None]:
    """Adds the item's name to what is raised inside; the error stays what it is."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in item {name!r}")
        raise
