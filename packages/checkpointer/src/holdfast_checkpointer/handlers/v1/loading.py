"""Loading named items, each by the handler that the registry and the checkpoint name."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import METRICS
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.handlers.registry import handler_class_for
from holdfast_checkpointer.handlers.v1.builtin import (
    JsonHandler,
    ProtoHandler,
    PyTreeHandler,
    StatefulHandler,
)
from holdfast_checkpointer.handlers.v1.drivers import EngineDriver, describe_item, driver_of
from holdfast_checkpointer.handlers.v1.resolution import (
    fallback_for_load,
    has_foreign,
    is_foreign,
    resolve_for_load,
)
from holdfast_checkpointer.options import Context
from holdfast_metadata.orbax import ITEM_METADATA_FILE

_log = logging.getLogger(__name__)
_OWN = (PyTreeHandler, JsonHandler, ProtoHandler)


class Wanted:
    """How one item is to be loaded, taken apart in the caller's thread.

    Which of holdfast's handlers will do it follows from the checkpoint: each prepares, for where
    arrays go depends on the thread.

    Args:
        abstract: The abstract item; None for as it was saved.
        **fields: Further restore arguments of a PyTree.

    Raises:
        ValueError: A restore argument is none.
    """

    def __init__(self, abstract: Any, **fields: Any) -> None:
        self.abstract = abstract
        self._prepared: dict[type, Any] = {}
        self._problems: dict[type, Exception] = {}
        for kind in _OWN:
            handler = kind()
            if abstract is not None and handler.is_abstract_handleable(abstract) is False:
                continue
            try:
                given = fields if kind is PyTreeHandler else {}
                self._prepared[kind] = EngineDriver(handler).prepare(abstract, **given)
            except (TypeError, ValueError) as error:
                self._problems[kind] = error
        if fields and PyTreeHandler in self._problems:
            raise self._problems[PyTreeHandler]

    def for_handler(self, handler: Any) -> Any:
        """What a handler's driver takes as its request.

        Raises:
            Exception: What the handler said when it was asked to prepare.
        """
        kind = type(handler)
        if kind in self._problems:
            raise self._problems[kind]
        if kind in _OWN and kind not in self._prepared:
            raise ValueError(
                f"{kind.__name__} cannot load an item into {type(self.abstract).__qualname__}"
            )
        return self._prepared.get(kind, self.abstract)


@dataclass(frozen=True)
class ItemsRequest:
    """A load of several items, resolved as far as it can be without the checkpoint."""

    wanted: Mapping[str, Wanted | None]
    default: Wanted
    composite: CompositeCheckpointHandler
    arguments: Any

    @classmethod
    def of(cls, targets: Mapping[str, Any]) -> ItemsRequest:
        """Takes targets by name; none means every item as it was saved."""
        arguments = {n: item for n, item in targets.items() if isinstance(item, CheckpointArgs)}
        composite = CompositeCheckpointHandler()
        wanted = {n: None if n in arguments else Wanted(item) for n, item in targets.items()}
        return cls(wanted, Wanted(None), composite, composite.prepare_inferred(arguments))

    async def fetch(self, stored: StoredCheckpoint, context: Context) -> dict[str, Any]:
        """Loads what is wanted, all at once.

        Raises:
            ItemNotFoundError: An item is not in the checkpoint; lists those that are.
        """
        if stored.flat:
            raise stored.no_item("by a name")
        for name in self.wanted:
            stored.require_item(name)
        names = list(self.wanted) or await _all_items(stored, context)
        found = await run_all(self._fetch(stored, name, context) for name in names)
        return dict(zip(names, found, strict=True))

    async def _fetch(self, stored: StoredCheckpoint, name: str, context: Context) -> Any:
        wanted = self.wanted.get(name, self.default)
        if wanted is not None:
            handler = await find_handler(stored, name, wanted.abstract, context)
            if handler is not None:
                return await fetch_item(stored, name, handler, wanted, context)
        given = self.arguments.items or {}
        asked = dataclasses.replace(self.arguments, items={name: given.get(name)})
        return (await self.composite.fetch_all(stored, asked, context))[name]


async def fetch_item(
    stored: StoredCheckpoint, name: str, handler: Any, wanted: Wanted, context: Context
) -> Any:
    """Loads one item with the handler found for it."""
    try:
        request = wanted.for_handler(handler)
        return await driver_of(handler).fetch(stored.item_area(name), request, context)
    except Exception as error:
        error.add_note(f"in item {name!r}")
        raise


async def find_handler(
    stored: StoredCheckpoint, name: str, abstract: Any, context: Context
) -> Any | None:
    """The handler of an item; None if it is one that takes arguments (of a v0 checkpointer).

    Raises:
        NoHandlerError: None is known.
    """
    registry = context.checkpointables.registry
    recorded = stored.recorded_handler(name)
    # In a thread, for it calls code of users.
    resolve = functools.partial(resolve_for_load, registry, name, abstract, recorded)
    handler = await asyncio.to_thread(resolve)
    if handler is not None:
        return handler
    kind = handler_class_for(recorded)
    if kind is not None and all(kind is not type(own().engine()) for own in _OWN):
        return None
    is_tree = ITEM_METADATA_FILE in await stored.item_area(name).names()
    return fallback_for_load(registry, name, recorded, is_tree=is_tree)


async def _all_items(stored: StoredCheckpoint, context: Context) -> list[str]:
    """Every item but metrics, and but those that only their own object can load."""
    names = []
    for name in stored.items:
        if name == METRICS:
            continue
        handler = await find_handler(stored, name, None, context)
        if isinstance(handler, StatefulHandler):
            _log.warning(
                "item %r of %s was saved by an object that saves itself, and is not loaded: pass "
                "that object by its name",
                *(name, stored.area.label),
            )
            continue
        names.append(name)
    return names


async def describe_other(stored: StoredCheckpoint, name: str, context: Context) -> Any:
    """What the handler of an item that is no PyTree tells of it; None if there is none."""
    registry = context.checkpointables.registry
    if not has_foreign(registry):
        return None
    recorded = stored.recorded_handler(name)
    handler = await asyncio.to_thread(resolve_for_load, registry, name, None, recorded)
    if handler is None or not is_foreign(type(handler)):
        return None
    return await describe_item(handler, stored.item_area(name), name, context)
