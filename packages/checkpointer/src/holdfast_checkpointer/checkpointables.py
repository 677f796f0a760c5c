"""The free functions for several items at one path, each saved by the handler that fits it."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.args import (
    CheckpointArgs,
    Composite,
    ProtoRestore,
    ProtoSave,
    PyTreeRestore,
    PyTreeSave,
)
from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.names import check_final, check_item_name
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    refuse_several_processes,
    start_save,
    write_checkpoint,
)
from holdfast_checkpointer.functions import check_custom_metadata, metadata
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_checkpointer.safetensors.options import refuse_tensors

Path = str | PathLike[str]


def save_checkpointables(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> None:
    """Saves several items as one checkpoint: all visible and durable on return, or none.

    Args:
        path: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        checkpointables: By name: PyTrees, protobuf messages, or the save arguments of a
            handler (`args.JsonSave(config)`), which choose it.
        overwrite: Replace a checkpoint that is there, as `save` does.
        custom_metadata: A JSON object to store beside the items.
        context: Options of this call.

    Raises:
        FileExistsError: Something is at `path`; it was not touched.
        ValueError: There is no item, or a name, an item or the metadata cannot be saved; the
            item is named. Nothing was created.
        StorageError: The storage failed; nothing half-written is visible.

    Example:
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
        custom_metadata=custom_metadata,
        context=context,
    ).result()


def save_checkpointables_async(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    overwrite: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Takes a snapshot of every item and saves in the background; see `save_async`."""
    chosen = options.current(context)
    refuse_several_processes(chosen)
    refuse_tensors(chosen.checkpoint_layout, "save_checkpointables")
    backend, final = chosen.locate(path)
    check_final(final)
    contents = stage_checkpointables(checkpointables, custom_metadata, chosen)

    async def write() -> None:
        await write_checkpoint(
            backend, final, contents, replace=overwrite, atomicity=chosen.atomicity.mode
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
    args = {name: _saving(name, item) for name, item in _named(checkpointables).items()}
    if not args:
        raise ValueError("checkpointables is empty: a checkpoint has at least one item")
    items = CompositeCheckpointHandler().stage_all(Composite(**args), context)
    return Contents(items, custom_metadata, marker=True)


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
            message's class, the restore arguments of a handler, or None for the item as it
            was saved. None or empty loads all items. The result of
            `checkpointables_metadata` is one, too.
        context: Options of this call.

    Raises:
        FileNotFoundError: No checkpoint is committed there; the message says what is.
        KeyError: The checkpoint has no such item; the message lists those it has.
        ValueError: A target does not fit, the bytes are damaged, or an item's handler is
            not known.
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
    if isinstance(abstract_checkpointables, CheckpointMetadata):
        abstract_checkpointables = abstract_checkpointables.items
    targets = _named(abstract_checkpointables or {})
    handler = CompositeCheckpointHandler()
    request = handler.prepare_inferred({name: _restoring(item) for name, item in targets.items()})

    async def body(stored: StoredCheckpoint) -> dict[str, Any]:
        return dict(await handler.fetch_all(stored, request, chosen))

    return AsyncResponse(
        read_checkpoint(backend, final, body),
        what=f"the load from {path}",
        deadline=chosen.asynchronous.timeout_secs,
    )


def checkpointables_metadata(
    path: Path, *, context: options.Context | None = None
) -> CheckpointMetadata:
    """Describes every item without reading arrays: `metadata` is a dict of them by name.

    An item that is no PyTree is None there.

    Raises:
        FileNotFoundError: No checkpoint is committed there.
    """
    found = metadata(path, context=context)
    return dataclasses.replace(found, metadata=dict(found.items))


def _named(checkpointables: Any) -> dict[str, Any]:
    if not isinstance(checkpointables, Mapping):
        kind = type(checkpointables).__name__
        raise ValueError(f"checkpointables must be a dict of items by name, got {kind}")
    return {check_item_name(name): item for name, item in checkpointables.items()}


def _saving(name: str, item: Any) -> CheckpointArgs:
    """The save arguments of an item, which choose its handler."""
    if isinstance(item, CheckpointArgs):
        return item
    if item is None:
        raise ValueError(f"item {name!r} is None, which holds nothing to save; leave it out")
    if _is_stateful(item):
        raise NotImplementedError(
            f"item {name!r} is a {type(item).__name__} that saves itself (it has async save and "
            "load); this version of holdfast does not save such objects yet: save their state "
            "as a PyTree or with args.JsonSave"
        )
    return ProtoSave(item) if _is_message(item) else PyTreeSave(item)


def _restoring(item: Any) -> CheckpointArgs | None:
    if item is None or isinstance(item, CheckpointArgs):
        return item
    if isinstance(item, type) and _is_message(item):
        return ProtoRestore(item)
    return PyTreeRestore(item)


def _is_stateful(item: Any) -> bool:
    """Whether an object is a `StatefulCheckpointable` of Orbax's."""
    return all(
        inspect.iscoroutinefunction(getattr(type(item), method, None))
        for method in ("save", "load")
    )


def _is_message(item: Any) -> bool:
    """Whether it is a protobuf message or a class of them; whoever has one has imported it."""
    module = sys.modules.get("google.protobuf.message")
    if module is None:
        return False
    return issubclass(item if isinstance(item, type) else type(item), module.Message)
