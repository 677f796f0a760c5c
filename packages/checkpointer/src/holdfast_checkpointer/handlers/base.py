"""The engine's protocol of a handler: how one item is staged, written and read.

A save runs in two halves. `stage` is the blocking one: it refuses what cannot be saved
and takes a snapshot, without any I/O. The `StagedItem` it returns is written in the
background, into whatever area the commit strategy hands out.

The methods of Orbax's protocol (`save`, `restore`, `finalize` and so on) are here too: they do
the same to a plain folder. A class of a user's that overrides one of them is driven through
them alone; see `handlers.foreign`.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar, TypeVar

from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.options import Context, MultiprocessingOptions
from holdfast_metadata import Node
from holdfast_storage import ReadArea, WriteArea

Path = str | PathLike[str]
H = TypeVar("H")


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

    @property
    def calls(self) -> int:
        """How many calls its writing makes in the caller's thread, which waits for them."""
        return 0

    @property
    def complete(self) -> bool:
        """Whether `write` leaves nothing to finish."""
        return False

    @property
    def shared(self) -> bool:
        """Whether every process of a job writes a part of it; else the primary writes it."""
        return False

    def for_follower(self) -> StagedItem | None:
        """What a process of a job that is not the primary writes of it; None for nothing."""
        return self if self.shared else None

    def fingerprint(self) -> Mapping[str, str]:
        """What must be the same on every process, by leaf, as JSON objects; work for the CPU."""
        return {}

    def encode(self, record: ItemRecord) -> bytes:
        """What `write` returned on this process, for the primary."""
        return b""

    def decode(self, data: bytes) -> ItemRecord:
        """The inverse of `encode`, of what another process wrote of the same item."""
        return ItemRecord()

    @abc.abstractmethod
    async def write(self, area: WriteArea) -> ItemRecord:
        """Writes this process's part of the item."""

    @abc.abstractmethod
    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Writes the documents that describe all parts. Coordinator only."""

    async def discard(self) -> None:  # noqa: B027 - most items hold nothing
        """Removes what the item holds outside of its area, whatever became of it."""


@dataclass(frozen=True)
class Item:
    """One staged item and the handler string to record for it."""

    staged: StagedItem
    recorded_as: str


_engine_classes: set[type] = set()


def engine_methods(kind: type[H]) -> type[H]:
    """Marks a class whose methods of Orbax's protocol do what the engine does."""
    _engine_classes.add(kind)
    return kind


def overrides(kind: type, method: str) -> bool:
    """Whether a class of handlers has a method of Orbax's protocol that is not the engine's."""
    owner = next((base for base in kind.__mro__ if method in vars(base)), None)
    return owner is not None and owner not in _engine_classes


@engine_methods
class CheckpointHandler:
    """Saves and loads one kind of item.

    A subclass has either the engine's methods (`stage`, `fetch`, `describe`) or those of
    Orbax's protocol (`save` and `restore`, or `async_save`; `metadata`, `finalize`, `close`).
    One that overrides a method of the latter is driven only through these.

    Attributes:
        save_args: The class of arguments that `stage` takes.
        restore_args: The class of arguments that `fetch` takes.
        recorded_as: The class path that `_CHECKPOINT_METADATA` records, one that every
            Orbax reader restores. Without it a class is recorded by its own path.
        taking_part: Which processes save when it is called directly; None for those of the
            context. In a checkpoint those of the checkpointer do.
    """

    save_args: ClassVar[type[CheckpointArgs]]
    restore_args: ClassVar[type[CheckpointArgs]]
    recorded_as: ClassVar[str]
    taking_part: MultiprocessingOptions | None = None

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Validates, then takes a snapshot. No I/O; the caller may change its arrays after.

        Raises:
            ValueError: The item cannot be saved; every offending leaf is named.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method 'stage'")

    def stage_all(self, args: Any, context: Context) -> dict[str, Item]:
        """Stages a whole checkpoint, by item name; "" is the checkpoint itself.

        One handler has one item, which lies in the checkpoint itself; see
        `CompositeCheckpointHandler` for several.
        """
        return {"": Item(self.stage(args, context), self.recorded())}

    def prepare(self, args: Any) -> Any:
        """Turns restore arguments into a request, in the caller's thread and without I/O.

        What depends on the thread (JAX's default device, a mesh) is resolved here, for
        `fetch` runs on the storage loop. By default the arguments are the request.
        """
        return args

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the item, verified."""
        raise NotImplementedError(f"{type(self).__name__} has no method 'fetch'")

    async def fetch_all(self, stored: StoredCheckpoint, request: Any, context: Context) -> Any:
        """Reads what `stage_all` staged."""
        return await self.fetch(stored.item_area(""), request, context)

    def reads(self, stored: StoredCheckpoint, request: Any) -> Sequence[str]:
        """The items that `fetch_all` reads for a request; "" is the checkpoint itself."""
        return [""]

    async def describe(self, area: ReadArea) -> Any:
        """Says what the item holds without reading its values."""
        raise NotImplementedError(f"{type(self).__name__} has no method 'describe'")

    async def describe_item(self, area: ReadArea) -> Any:
        """What `Checkpointer.metadata` says of the item; by default what `describe` says."""
        return await self.describe(area)

    async def describe_all(self, stored: StoredCheckpoint) -> Any:
        """Describes what `stage_all` staged; None if the checkpoint has named items instead."""
        return await self.describe_item(stored.item_area("")) if stored.flat else None

    async def describe_directly(self, stored: StoredCheckpoint) -> Any:
        """What `metadata` says of a plain folder that holds what `save` saved."""
        return await self.describe_item(stored.area)

    def recorded(self) -> str:
        """The handler string of what this handler saves."""
        return self.typestr()

    @classmethod
    def typestr(cls) -> str:
        """The class path recorded in the checkpoint.

        That of Orbax's handler which restores it; of a class with ways of its own, its own.
        """
        from holdfast_checkpointer.handlers.foreign.recognition import default_typestr

        return default_typestr(cls)

    def arguments(
        self, positional: Sequence[Any], keyword: Mapping[str, Any], *, save: bool
    ) -> CheckpointArgs:
        """The handler's arguments, given as such or made from the caller's.

        Raises:
            TypeError: They are another handler's, or arguments and their fields are mixed.
        """
        from holdfast_checkpointer.handlers.arguments import built_in_arguments

        made: CheckpointArgs = built_in_arguments(self, positional, keyword, save=save)
        return made

    def default_arguments(self) -> CheckpointArgs:
        """The arguments of a restore for which none were given.

        Raises:
            TypeError: They cannot be made without values.
        """
        return self.arguments((), {}, save=False)

    def accepts(self, args: Any, *, save: bool) -> str | None:
        """None if these are arguments of this handler, else which it takes, in words."""
        from holdfast_checkpointer.handlers.arguments import mismatch

        return mismatch(self, args, save=save)

    # --- Orbax's protocol, on a plain folder ---------------------------------------------------

    def save(self, directory: Path, *args: Any, **kwargs: Any) -> None:
        """Saves into a plain folder: no checkpoint, for nothing commits it.

        What was saved is readable after `finalize`. Use a `Checkpointer` for what a crash must
        not harm. In a job of several processes all call this, and on return all have written.

        Args:
            directory: A path or URL. It is created; what else is in it stays.
            *args: The save arguments, or what they are made from.
            **kwargs: `args=` with the save arguments, or their fields.

        Raises:
            FileExistsError: Something was saved there before, or it lies in a checkpoint.
            ValueError: The item cannot be saved; nothing was written.
        """
        from holdfast_checkpointer.handlers import direct

        direct.start(self, directory, args, kwargs).result()

    async def async_save(self, directory: Path, *args: Any, **kwargs: Any) -> list[Any]:
        """Takes a snapshot; the futures it returns write it. See `save`."""
        from holdfast_checkpointer.handlers import direct

        return [direct.start(self, directory, args, kwargs)]

    def restore(self, directory: Path, *args: Any, **kwargs: Any) -> Any:
        """Restores from a plain folder, or from a checkpoint or an item in one.

        Args:
            directory: A path or URL.
            *args: The restore arguments, or what they are made from.
            **kwargs: `args=` with the restore arguments, or their fields.

        Raises:
            NotFinalizedError: It was saved and `finalize` has not been called.
            FileNotFoundError: Nothing is there.
            ValueError: The target does not fit, or the bytes are damaged.
        """
        from holdfast_checkpointer.handlers import direct

        return direct.restore(self, directory, args, kwargs)

    def metadata(self, directory: Path) -> Any:
        """Describes what is in a plain folder, or in a checkpoint, without reading arrays."""
        from holdfast_checkpointer.handlers import direct

        return direct.metadata(self, directory)

    def finalize(self, directory: Path) -> None:
        """Completes what `save` or `async_save` began there, and makes it durable.

        Waits for the futures of `async_save`. A second call does nothing. In a job of several
        processes any of them may call this, or all.

        Raises:
            FileNotFoundError: This handler has saved nothing there.
        """
        from holdfast_checkpointer.handlers import direct

        direct.finalize(self, directory)

    def close(self) -> None:
        """Releases what the handler holds; nothing by default."""


@engine_methods
class AsyncCheckpointHandler(CheckpointHandler):
    """A handler whose `async_save` returns futures; Orbax's base class for such.

    Subclasses implement `async_save`; their `save` may be this one, which waits for the futures.
    """

    def save(self, directory: Path, *args: Any, **kwargs: Any) -> None:
        """Calls `async_save` and waits for what it returns."""
        from holdfast_checkpointer.handlers.foreign.calls import run_coroutine, wait_for

        wait_for(run_coroutine(lambda: self.async_save(directory, *args, **kwargs)))
