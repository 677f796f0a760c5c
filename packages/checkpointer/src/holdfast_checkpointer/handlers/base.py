"""The engine's protocol of a handler: how one item is staged, written and read.

A save runs in two halves. `stage` is the blocking one: it refuses what cannot be saved
and takes a snapshot, without any I/O. The `StagedItem` it returns is written in the
background, into whatever area the commit strategy hands out.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.options import Context
from holdfast_metadata import Node
from holdfast_storage import ReadArea, WriteArea


@dataclass(frozen=True)
class ItemRecord:
    """What one process wrote of one item; the coordinator gathers them.

    Attributes:
        orbax_unreadable: Why Orbax cannot read the item, or None if it can.
        detail: The handler's own business.
    """

    orbax_unreadable: str | None = None
    detail: Any = None


class StagedItem(abc.ABC):
    """An item whose values can no longer change, ready to be written."""

    @property
    def tree(self) -> Node | None:
        """The tree that will be written; None if the item is no PyTree."""
        return None

    @abc.abstractmethod
    async def write(self, area: WriteArea) -> ItemRecord:
        """Writes this process's part of the item."""

    @abc.abstractmethod
    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Writes the documents that describe all parts. Coordinator only."""


@dataclass(frozen=True)
class Item:
    """One staged item and the handler string to record for it."""

    staged: StagedItem
    recorded_as: str


class CheckpointHandler(abc.ABC):
    """Saves and loads one kind of item.

    Attributes:
        save_args: The class of arguments that `stage` takes.
        restore_args: The class of arguments that `fetch` takes.
        recorded_as: The class path that `_CHECKPOINT_METADATA` records, one that every
            Orbax reader restores.
    """

    save_args: ClassVar[type[CheckpointArgs]]
    restore_args: ClassVar[type[CheckpointArgs]]
    recorded_as: ClassVar[str]

    @abc.abstractmethod
    def stage(self, args: Any, context: Context) -> StagedItem:
        """Validates, then takes a snapshot. No I/O; the caller may change its arrays after.

        Raises:
            ValueError: The item cannot be saved; every offending leaf is named.
        """

    def stage_all(self, args: Any, context: Context) -> dict[str, Item]:
        """Stages a whole checkpoint, by item name; "" is the checkpoint itself.

        One handler has one item, which lies in the checkpoint itself; see
        `CompositeCheckpointHandler` for several.
        """
        return {"": Item(self.stage(args, context), self.typestr())}

    def prepare(self, args: Any) -> Any:
        """Turns restore arguments into a request, in the caller's thread and without I/O.

        What depends on the thread (JAX's default device, a mesh) is resolved here, for
        `fetch` runs on the storage loop. By default the arguments are the request.
        """
        return args

    @abc.abstractmethod
    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the item, verified."""

    async def fetch_all(self, stored: StoredCheckpoint, request: Any, context: Context) -> Any:
        """Reads what `stage_all` staged."""
        return await self.fetch(stored.item_area(""), request, context)

    @abc.abstractmethod
    async def describe(self, area: ReadArea) -> Any:
        """Says what the item holds without reading its values."""

    async def describe_item(self, area: ReadArea) -> Any:
        """What `Checkpointer.metadata` says of the item; by default what `describe` says."""
        return await self.describe(area)

    async def describe_all(self, stored: StoredCheckpoint) -> Any:
        """Describes what `stage_all` staged; None if the checkpoint has named items instead."""
        return await self.describe_item(stored.item_area("")) if stored.flat else None

    @classmethod
    def typestr(cls) -> str:
        """The class path recorded in the checkpoint."""
        return cls.recorded_as

    def close(self) -> None:  # noqa: B027 - most handlers hold nothing
        """Releases what the handler holds; nothing by default."""
