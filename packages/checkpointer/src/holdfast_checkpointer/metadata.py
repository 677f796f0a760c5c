"""What `metadata` returns: a checkpoint described without reading its arrays."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from holdfast_checkpointer.args import JsonRestore
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import AUTO, METRICS
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.v1.loading import describe_other
from holdfast_checkpointer.options import Context
from holdfast_metadata.orbax import ITEM_METADATA_FILE
from holdfast_storage import StorageBackend


@dataclass(frozen=True)
class CheckpointMetadata:
    """A checkpoint, described.

    Attributes:
        path: Its URL or path.
        metadata: The PyTree of `state` (or the first PyTree), with `ArrayMetadata` for
            arrays and the values themselves for numbers, strings and bytes. It can be
            given to `load` as the target. None if the checkpoint holds no PyTree.
        items: The same for every item, by name; "" in the flat layout. An item that is
            no PyTree is what its handler tells of it, or None.
        custom_metadata: What the caller stored beside the state.
        init_timestamp_nsecs: When the save began, by the writer's clock, if known.
        commit_timestamp_nsecs: When it was committed, by the writer's clock, if known.
        orbax_readable: Why Orbax cannot read an item, by name; None where it can.
        data_url: The directory that Orbax opens.
    """

    path: str
    metadata: Any
    items: Mapping[str, Any] = field(default_factory=dict)
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    orbax_readable: Mapping[str, str | None] = field(default_factory=dict)
    data_url: str = ""

    @property
    def init_timestamp(self) -> datetime | None:
        """`init_timestamp_nsecs` in UTC."""
        return _moment(self.init_timestamp_nsecs)

    @property
    def commit_timestamp(self) -> datetime | None:
        """`commit_timestamp_nsecs` in UTC."""
        return _moment(self.commit_timestamp_nsecs)


@dataclass(frozen=True)
class StepMetadata:
    """A checkpoint, described by the handler of a v0 checkpointer.

    Attributes:
        item_handlers: Handler strings by item name; one string if the item lies in the
            checkpoint itself. None if the checkpoint does not say. Of a plain folder, what a
            composite handler knows itself, with None for an item that it does not know.
        item_metadata: What the handler says of the item: for a PyTree a `TreeMetadata`. For a
            composite handler an `args.Composite` of these, by name. None where there is nothing
            to say.
        metrics: Metrics stored with the checkpoint.
        performance_metrics: Orbax's measurements of the save; holdfast stores none.
        init_timestamp_nsecs: When the save began, by the writer's clock, if known.
        commit_timestamp_nsecs: When it was committed, by the writer's clock, if known.
        custom_metadata: What the caller stored beside the state.
    """

    item_handlers: Mapping[str, str | None] | str | None
    item_metadata: Any
    metrics: Mapping[str, Any] = field(default_factory=dict)
    performance_metrics: Mapping[str, Any] = field(default_factory=dict)
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def init_timestamp(self) -> datetime | None:
        """`init_timestamp_nsecs` in UTC."""
        return _moment(self.init_timestamp_nsecs)

    @property
    def commit_timestamp(self) -> datetime | None:
        """`commit_timestamp_nsecs` in UTC."""
        return _moment(self.commit_timestamp_nsecs)


async def describe_step(stored: StoredCheckpoint, handler: CheckpointHandler) -> StepMetadata:
    """Describes an opened checkpoint as its handler does."""
    step = stored.step
    metrics = step.metrics
    if not metrics and METRICS in stored.items:
        json = JsonCheckpointHandler()
        with contextlib.suppress(FileNotFoundError):  # an item of that name that is no JSON
            metrics = await json.fetch(stored.item_area(METRICS), JsonRestore(), Context())
    return StepMetadata(
        item_handlers=step.item_handlers,
        item_metadata=await handler.describe_all(stored),
        metrics=metrics,
        performance_metrics=step.performance_metrics,
        init_timestamp_nsecs=step.init_timestamp_nsecs,
        commit_timestamp_nsecs=step.commit_timestamp_nsecs,
        custom_metadata=step.custom_metadata or {},
    )


async def describe_checkpoint(
    backend: StorageBackend,
    stored: StoredCheckpoint,
    *,
    name: str | None = AUTO,
    context: Context | None = None,
) -> CheckpointMetadata:
    """Describes every item of an opened checkpoint; `metadata` is that of the one named.

    Raises:
        ItemNotFoundError: There is no such item, or it is no PyTree.
    """
    handler = PyTreeCheckpointHandler()
    items: dict[str, Any] = {}
    reasons: dict[str, str | None] = {}
    for item in stored.items:
        area = stored.item_area(item)
        if item == METRICS:
            continue
        if ITEM_METADATA_FILE not in await area.names():
            items[item] = await describe_other(stored, item, context or Context())
            continue
        items[item] = await handler.describe(area)
        reasons[item] = await handler.orbax_reason(area)
    chosen = None
    if name != AUTO or reasons:  # a checkpoint without a PyTree is described as well
        chosen = await stored.find_tree(name)
        if chosen not in reasons:
            raise stored.no_tree(chosen)
    return CheckpointMetadata(
        path=f"{backend.root.rstrip('/')}/{stored.final}",
        metadata=None if chosen is None else items[chosen],
        items=items,
        custom_metadata=stored.step.custom_metadata or {},
        init_timestamp_nsecs=stored.step.init_timestamp_nsecs,
        commit_timestamp_nsecs=stored.step.commit_timestamp_nsecs,
        orbax_readable=reasons,
        data_url=stored.area.label,
    )


def _moment(nanoseconds: int | None) -> datetime | None:
    return None if nanoseconds is None else datetime.fromtimestamp(nanoseconds / 1e9, UTC)
