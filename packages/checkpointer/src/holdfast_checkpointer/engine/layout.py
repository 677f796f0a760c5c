"""What is inside a checkpoint, whoever wrote it: items, documents, flat or named."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from holdfast_checkpointer.engine.names import AUTO, METRICS, ORBAX_TEMPORARY, STATE
from holdfast_checkpointer.engine.unmarked import holds_unmarked
from holdfast_checkpointer.errors import ItemNotFoundError
from holdfast_checkpointer.multihost import jax_service
from holdfast_metadata.orbax import ITEM_METADATA_FILE, STEP_METADATA_FILE, StepMetadata
from holdfast_storage import (
    CheckpointNotFoundError,
    ObjectNotFoundError,
    ReadArea,
    StorageBackend,
    UnfinishedCheckpointError,
    keys,
)
from holdfast_storage.commit import occupant, open_plain, reading

T = TypeVar("T")


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint that was found and opened.

    Attributes:
        area: Its data.
        final: The prefix it is known by.
        step: Its step document (empty if it has none).
        names: Files and folders one level below; folders end in `/`.
        ours: Whether holdfast committed it (digests exist) or Orbax did.
    """

    area: ReadArea
    final: str
    step: StepMetadata
    names: tuple[str, ...]
    ours: bool

    @property
    def flat(self) -> bool:
        """Whether the one item lies in the checkpoint itself."""
        return isinstance(self.step.item_handlers, str) or ITEM_METADATA_FILE in self.names

    @property
    def items(self) -> tuple[str, ...]:
        """Names of the items, sorted; one empty name in the flat layout."""
        if self.flat:
            return ("",)
        return tuple(sorted(name[:-1] for name in self.names if name.endswith("/")))

    def item_area(self, name: str) -> ReadArea:
        """The scope of one item."""
        return self.area.child(name) if name else self.area

    def require_item(self, name: str) -> None:
        """Raises a `KeyError` that lists the items there are, unless this is one of them."""
        if name not in self.items:
            raise self.no_item(name)

    def recorded_handler(self, name: str) -> str | None:
        """The handler string recorded for an item, if any."""
        recorded = self.step.item_handlers
        if isinstance(recorded, str):
            return recorded if not name else None
        return None if recorded is None else recorded.get(name)

    async def find_tree(self, name: str | None = AUTO) -> str:
        """The item to load as a PyTree.

        Args:
            name: An item's name, or "AUTO": `state` if it is there, else the first item by
                name that is a PyTree, else the checkpoint itself if it is flat. None means
                the checkpoint itself.

        Raises:
            ItemNotFoundError: There is no such item; the message lists those there are.
        """
        if self.flat:
            if name in (AUTO, None, ""):
                return ""
            raise self.no_item(str(name))
        if name is None:
            raise self.no_item("the checkpoint itself")
        if name != AUTO:
            self.require_item(name)
            return name
        candidates = [item for item in self.items if item != METRICS]
        for item in sorted(candidates, key=lambda item: (item != STATE, item)):
            if ITEM_METADATA_FILE in await self.area.child(item).names():
                return item
        raise self.no_item("a PyTree")

    def no_item(self, wanted: str) -> ItemNotFoundError:
        """The error of an item that is not there; it lists those that are."""
        there = ", ".join(repr(item) for item in self.items) or "none"
        layout = "one unnamed item (a flat checkpoint)" if self.flat else f"items: {there}"
        return ItemNotFoundError(f"{self.area.label} has no item {wanted!r}; it has {layout}")

    def no_tree(self, name: str) -> ItemNotFoundError:
        """The error of an item that is there and no PyTree."""
        by = self.recorded_handler(name) or "an unnamed handler"
        return ItemNotFoundError(
            f"item {name!r} of {self.area.label} is no PyTree: {by} saved it; load it with "
            "load_checkpointables"
        )


async def _refuse_msgpack(backend: StorageBackend, final: str) -> None:
    """Says what a checkpoint in one msgpack file is, for those who have old ones."""
    if "checkpoint" in await open_plain(backend, final).names():
        raise CheckpointNotFoundError(
            "the file 'checkpoint' is here, as old versions of Flax and Orbax wrote it in msgpack; "
            "holdfast does not read those: load it with Orbax and save it again",
            key=final,
            root=backend.root,
        )


async def read_checkpoint(
    backend: StorageBackend,
    final: str,
    body: Callable[[StoredCheckpoint], Awaitable[T]],
    *,
    foreign: Callable[[], Awaitable[tuple[T] | None]] | None = None,
) -> T:
    """Opens a checkpoint, holdfast's or Orbax's, and runs `body` on it.

    If a holdfast checkpoint is replaced meanwhile, `body` runs again on the new one.

    Args:
        backend: Where it is.
        final: The prefix it is known by.
        body: What to do with it.
        foreign: What to do where something is that is neither's; None from it if nothing.

    Raises:
        CheckpointNotFoundError: None is committed there; the message says what is.
        DamagedCheckpointError: Its bytes are not what was saved.
    """
    found = await occupant(backend, final)
    if found.unfinished:
        raise UnfinishedCheckpointError(
            f"this is {found.detail}; if an old version of Orbax wrote it on a disk and it was "
            "copied here, load it with AtomicityOptions(allow_legacy_atomic_rename=True)",
            key=final,
            root=backend.root,
        )
    if found.kind == "orbax":
        await refuse_no_checkpoint(backend, final)
        return await body(await describe_area(open_plain(backend, final), final, ours=False))
    if found.kind == "foreign" and foreign is not None:
        made = await foreign()
        if made is not None:
            return made[0]
    if found.kind == "foreign":
        await _refuse_msgpack(backend, final)
        if await holds_unmarked(backend, final):
            return await body(await describe_area(open_plain(backend, final), final, ours=False))

    async def ours(area: ReadArea) -> T:
        return await body(await describe_area(area, final, ours=True))

    # In a job of thousands one process lists thousands of files, not each of them: what is
    # missing is missed by whoever wants to read it.
    check_whole = jax_service.process_index() == 0
    return await reading(backend, final, ours, check_whole=check_whole)


async def refuse_no_checkpoint(backend: StorageBackend, final: str) -> None:
    """Refuses what has Orbax's marks and is no checkpoint: a temporary one, or an item of one.

    Raises:
        CheckpointNotFoundError: The message says what it is.
    """
    if ORBAX_TEMPORARY in keys.leaf(final):
        raise UnfinishedCheckpointError(
            "this is the temporary directory of an Orbax save that was never committed",
            key=final,
            root=backend.root,
        )
    above = keys.parent(final)
    try:
        await backend.stat(keys.join(above, STEP_METADATA_FILE))
    except ObjectNotFoundError:
        return
    raise CheckpointNotFoundError(
        "this is inside the checkpoint one level up: load that one, and name the item",
        key=final,
        root=backend.root,
    )


async def describe_area(area: ReadArea, final: str, *, ours: bool) -> StoredCheckpoint:
    """What is in an area that is a checkpoint."""
    names, step = await asyncio.gather(area.names(), _step_document(area))
    return StoredCheckpoint(area, final, step, tuple(names), ours)


async def _step_document(area: ReadArea) -> StepMetadata:
    try:
        data = await area.get(STEP_METADATA_FILE)
    except ObjectNotFoundError:
        return StepMetadata()
    return StepMetadata.from_bytes(data, source=f"{area.label}/{STEP_METADATA_FILE}")
