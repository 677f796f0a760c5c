"""The free functions for several items at one path, each saved by the handler that fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine, Mapping
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.args import CheckpointArgs, Composite
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.layout import StoredCheckpoint
from holdfast_checkpointer.engine.names import check_final, check_item_name, check_stored_name
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    start_save,
    write_checkpoint,
)
from holdfast_checkpointer.errors import InvalidLayoutError
from holdfast_checkpointer.functions import check_custom_metadata, metadata
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.handlers.v1.loading import ItemsRequest
from holdfast_checkpointer.handlers.v1.resolution import stage_item
from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_checkpointer.safetensors.files import Found
from holdfast_checkpointer.safetensors.load import read_by_layout
from holdfast_checkpointer.safetensors.options import refuse_tensors
from holdfast_storage import StorageBackend

Path = str | PathLike[str]


def save_checkpointables(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    force: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> None:
    """Saves several items as one checkpoint: all visible and durable on return, or none.

    Args:
        path: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        checkpointables: By name: PyTrees, protobuf messages, objects that save themselves
            (`StatefulCheckpointable`, such as a data iterator), whatever a handler of
            `CheckpointablesOptions.registry` takes, or the save arguments of a handler
            (`args.JsonSave(config)`), which choose it.
        overwrite: Replace a checkpoint that is there, as `save` does.
        force: Replace it also in a run to which another process writes, as `save` does.
        custom_metadata: A JSON object to store beside the items.
        context: Options of this call.

    Raises:
        FileExistsError: Something is at `path`; it was not touched.
        LeaseHeldError: It would replace a checkpoint in a run to which another process writes,
            and `force` is false. Nothing was written.
        ValueError: There is no item, or a name, an item or the metadata cannot be saved; the
            item is named. Nothing was created.
        StorageError: The storage failed; nothing half-written is visible.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> config = hf.args.JsonSave({"layers": 3})
        >>> hf.save_checkpointables("memory://doc/items", {"w": np.arange(3), "config": config})
        >>> hf.load_checkpointables("memory://doc/items")
        {'config': {'layers': 3}, 'w': array([0, 1, 2])}
    """
    save_checkpointables_async(
        path,
        checkpointables,
        overwrite=overwrite,
        force=force,
        custom_metadata=custom_metadata,
        context=context,
    ).result()


def save_checkpointables_async(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    force: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Takes a snapshot of every item and saves in the background; see `save_async`."""
    with call_of(lambda: options.current(context)) as call:
        chosen = options.current(context)
        refuse_tensors(chosen.checkpoint_layout, "save_checkpointables")
        backend, final = chosen.locate(path)
        check_final(final)
        contents = stage_checkpointables(checkpointables, custom_metadata, chosen)

    async def write() -> None:
        await write_checkpoint(
            backend, final, contents, replace=overwrite, force=force, context=chosen, call=call
        )

    return start_save(
        contents,
        write(),
        what=f"the save to {path}",
        deadline=chosen.asynchronous.timeout_secs,
        afterwards=chosen.asynchronous.post_finalization_callback,
    )


def stage_checkpointables(
    checkpointables: Mapping[str, Any],
    custom_metadata: Mapping[str, Any] | None,
    context: options.Context,
) -> Contents:
    """Validates everything, then snapshots the items as the contents of a checkpoint."""
    if custom_metadata is not None:
        check_custom_metadata(custom_metadata)
    return Contents(_stage(checkpointables, context), custom_metadata, marker=True)


def load_checkpointables(
    path: Path,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata | None = None,
    *,
    context: options.Context | None = None,
) -> dict[str, Any]:
    """Loads several items, every byte of them verified.

    Args:
        path: A path or URL of one checkpoint, holdfast's or Orbax's.
        abstract_checkpointables: The items to load: by name a target as `load` takes it, a
            message's class, an object that loads itself, what the item's handler takes, the
            restore arguments of a handler, or None for the item as it was saved. None or empty
            loads all items, without metrics and, with a warning, without those that only
            their own object can load. The result of `checkpointables_metadata` is one, too.
        context: Options of this call.

    Raises:
        FileNotFoundError: No checkpoint is committed there; the message says what is.
        KeyError: The checkpoint has no such item (`ItemNotFoundError`, which lists those it
            has), or an item's handler is not known (`NoHandlerError`).
        ValueError: A target does not fit, or the bytes are damaged.
    """
    return load_checkpointables_async(path, abstract_checkpointables, context=context).result()


def load_checkpointables_async(
    path: Path,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata | None = None,
    *,
    context: options.Context | None = None,
) -> AsyncResponse[dict[str, Any]]:
    """Loads in the background; see `load_checkpointables`."""
    chosen = options.current(context)
    refuse_tensors(chosen.checkpoint_layout, "load_checkpointables")
    backend, final = chosen.locate(path)
    return load_checkpointables_from(backend, final, abstract_checkpointables, chosen)


def load_checkpointables_from(
    backend: StorageBackend,
    final: str,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata | None,
    context: options.Context,
) -> AsyncResponse[dict[str, Any]]:
    """What `load_checkpointables_async` does once the path is resolved."""
    read = items_reader(backend, abstract_checkpointables, context)
    return AsyncResponse(
        read(final),
        what=f"the load from {backend.root}/{final}",
        deadline=context.asynchronous.timeout_secs,
    )


def items_reader(
    backend: StorageBackend,
    abstract_checkpointables: Mapping[str, Any] | CheckpointMetadata | None,
    context: options.Context,
) -> Callable[[str], Coroutine[Any, Any, dict[str, Any]]]:
    """What loads several items from any final; made, and checked, in the caller's thread."""
    if isinstance(abstract_checkpointables, CheckpointMetadata):
        abstract_checkpointables = abstract_checkpointables.items
    targets = {}
    if abstract_checkpointables is not None:
        targets = _named(abstract_checkpointables, check_stored_name)
    request = ItemsRequest.of(targets)

    async def body(stored: StoredCheckpoint) -> dict[str, Any]:
        return await request.fetch(stored, context)

    async def tensors(found: Found) -> dict[str, Any]:
        raise InvalidLayoutError(
            f"{found.label} is safetensors files, one tree of tensors without items: load reads it"
        )

    return lambda final: read_by_layout(backend, final, context, body, tensors)


def checkpointables_metadata(
    path: Path, *, context: options.Context | None = None
) -> CheckpointMetadata:
    """Describes every item without reading arrays: `metadata` is a dict of them by name.

    An item that is no PyTree is what its handler tells of it, or None.

    Raises:
        FileNotFoundError: No checkpoint is committed there, or (`InvalidLayoutError`) its one
            item has no name.
    """
    found = metadata(path, context=context)
    if "" in found.items:
        raise InvalidLayoutError(
            f"{found.path} has one item, without a name: metadata(path) describes it"
        )
    return dataclasses.replace(found, metadata=dict(found.items))


def _named(checkpointables: Any, check: Callable[[object], str]) -> dict[str, Any]:
    if not isinstance(checkpointables, Mapping):
        kind = type(checkpointables).__name__
        raise ValueError(f"checkpointables must be a dict of items by name, got {kind}")
    return {check(name): item for name, item in checkpointables.items()}


def _stage(checkpointables: Any, context: options.Context) -> dict[str, Item]:
    """Every item, staged by the handler that its arguments or the registry choose."""
    named = _named(checkpointables, check_item_name)
    if not named:
        raise ValueError("checkpointables is empty: a checkpoint has at least one item")
    given = {name: item for name, item in named.items() if isinstance(item, CheckpointArgs)}
    staged = {}
    if given:
        staged.update(CompositeCheckpointHandler().stage_all(Composite(**given), context))
    for name, item in sorted(named.items()):
        if name not in given:
            try:
                staged[name] = stage_item(name, item, context)
            except Exception as error:
                error.add_note(f"in item {name!r}")
                raise
    return staged
