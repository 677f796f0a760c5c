"""How a checkpoint, or one item of it, is removed."""

from __future__ import annotations

import dataclasses

from holdfast_checkpointer.engine.layout import (
    StoredCheckpoint,
    describe_area,
    read_checkpoint,
    refuse_no_checkpoint,
)
from holdfast_checkpointer.engine.unmarked import holds_unmarked
from holdfast_metadata.orbax import STEP_METADATA_FILE
from holdfast_storage import (
    CheckpointNotFoundError,
    InvalidLayoutError,
    StorageBackend,
    UnsupportedOperationError,
    keys,
)
from holdfast_storage.commit import (
    CommittedArea,
    occupant,
    open_committed,
    read_record,
    reading,
    remove_hint,
    rewrite_checkpoint,
)
from holdfast_storage.lease import refuse_if_written


async def remove_checkpoint(
    backend: StorageBackend, final: str, *, missing_ok: bool, force: bool = False
) -> bool:
    """Un-commits a checkpoint, damaged or not, then removes its data.

    Returns:
        False if none is there and may be.

    Raises:
        LeaseHeldError: It is in a run to which another process writes, without `force`.
        CheckpointNotFoundError: There is no checkpoint, or it is an item of one.
        InvalidLayoutError: Other checkpoints are in it.
    """
    stored = await read_record(backend, final)
    attempt = stored.attempt
    if not stored.committed:
        try:
            attempt = (await open_committed(backend, final, check_whole=False)).record.attempt
        except CheckpointNotFoundError:
            if (await occupant(backend, final)).kind == "orbax":
                await _remove_orbax(backend, final, force=force)
                return True
            if missing_ok:
                return False
            raise
    await refuse_if_written(backend, final, force=force)
    strategy = await backend.commit_strategy()
    await remove_hint(backend, final)
    await strategy.retire(final, expected=str(attempt))
    return True


async def remove_item(
    backend: StorageBackend, final: str, name: str, *, missing_ok: bool, force: bool = False
) -> bool:
    """Replaces a checkpoint by one without an item; False if it is not there and may be.

    Raises:
        LeaseHeldError: It is in a run to which another process writes, without `force`.
        CheckpointNotFoundError: There is no checkpoint, or (`ItemNotFoundError`) no such item.
        ValueError: It is the only item.
        UnsupportedOperationError: Orbax wrote the checkpoint.
    """

    async def orbax(stored: StoredCheckpoint) -> None:
        stored.require_item(name)
        raise UnsupportedOperationError(
            f"Orbax wrote this checkpoint: item {name!r} cannot be taken out of it in one step; "
            "load what is to stay and save it",
            key=final,
            root=backend.root,
        )

    async def body(area: CommittedArea) -> None:
        stored = await describe_area(area, final, ours=True)
        stored.require_item(name)
        if len(stored.items) == 1:
            raise ValueError(
                f"item {name!r} is the only one of {area.label}: delete the checkpoint instead"
            )
        await refuse_if_written(backend, final, force=force)
        await rewrite_checkpoint(
            backend,
            area,
            keep=lambda path: path != STEP_METADATA_FILE and not path.startswith(f"{name}/"),
            written={STEP_METADATA_FILE: _step_without(stored, name)},
        )

    try:
        if (await occupant(backend, final)).kind == "orbax":
            await read_checkpoint(backend, final, orbax)
        await reading(backend, final, body)
    except InvalidLayoutError:
        if missing_ok:
            return False
        raise
    return True


async def _remove_orbax(backend: StorageBackend, final: str, *, force: bool) -> None:
    """Removes all that is in the folder of a checkpoint of Orbax's, which lists no files."""
    await refuse_no_checkpoint(backend, final)
    if await holds_unmarked(backend, keys.parent(final)):
        raise CheckpointNotFoundError(
            "this may be an item of a checkpoint one level up, as old versions of Orbax wrote "
            "them; nothing was touched",
            key=final,
            root=backend.root,
        )
    await refuse_if_written(backend, final, force=force)
    strategy = await backend.commit_strategy()
    remove = await strategy.uncommit_orbax(final)
    await remove()


def _step_without(stored: StoredCheckpoint, name: str) -> bytes:
    handlers = stored.step.item_handlers
    if isinstance(handlers, dict):
        handlers = {item: handler for item, handler in handlers.items() if item != name}
    return dataclasses.replace(stored.step, item_handlers=handlers).to_bytes()
