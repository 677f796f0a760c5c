"""The free functions: one checkpoint at one path, saved, loaded, described or deleted.

They never sweep and never collect: what they touch is the path they are given.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from os import PathLike
from typing import Any, TypeVar

from holdfast_checkpointer import options
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.layout import StoredCheckpoint, refuse_no_checkpoint
from holdfast_checkpointer.engine.names import (
    AUTO,
    STATE,
    check_final,
    check_item_name,
    check_loaded_name,
)
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    refuse_if_taken,
    start_save,
    write_checkpoint,
)
from holdfast_checkpointer.engine.unmarked import holds_unmarked
from holdfast_checkpointer.engine.verification import VerifyReport, verify_checkpoint
from holdfast_checkpointer.handlers.v1.builtin import PyTreeHandler
from holdfast_checkpointer.handlers.v1.loading import Wanted, fetch_item, find_handler
from holdfast_checkpointer.handlers.v1.resolution import has_foreign, stage_tree
from holdfast_checkpointer.metadata import CheckpointMetadata, describe_checkpoint
from holdfast_checkpointer.safetensors.files import Found
from holdfast_checkpointer.safetensors.load import (
    describe_tensors,
    holds_tensors,
    load_tensors,
    read_by_layout,
)
from holdfast_checkpointer.safetensors.options import CheckpointLayout, refuse_tensors
from holdfast_metadata import NotJsonError, require_json
from holdfast_storage import (
    CheckpointNotFoundError,
    DamagedCheckpointError,
    IncompleteCheckpointError,
    StorageBackend,
)
from holdfast_storage.commit import copy_checkpoint, occupant, open_committed
from holdfast_storage.loop import get_loop

T = TypeVar("T")
Path = str | PathLike[str]


def save(
    path: Path,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    force: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> None:
    """Saves a PyTree as a checkpoint: visible whole and durable on return, or not at all.

    Args:
        path: A path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        state: Any PyTree of arrays, PRNG keys, numbers, strings and bytes.
        checkpointable_name: The item's name inside the checkpoint.
        overwrite: Replace a checkpoint that is there. It stays loadable until the new one
            is committed, and if this save fails.
        force: Replace it also in a run to which another process writes. That process is told
            nothing of it.
        custom_metadata: A JSON object to store beside the state.
        context: Options of this call.

    Raises:
        FileExistsError: Something is at `path` (`CommitConflictError`: a checkpoint, or
            `DestinationOccupiedError`: something else). It was not touched.
        LeaseHeldError: It would replace a checkpoint in a run to which another process writes,
            and `force` is false. Nothing was written.
        ValueError: A leaf, a name or the metadata cannot be saved. Nothing was created.
        StorageError: The storage failed; nothing half-written is visible.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save("memory://doc/save", {"w": np.arange(3), "step": 7})
        >>> hf.load("memory://doc/save")
        {'step': 7, 'w': array([0, 1, 2])}
    """
    save_async(
        path,
        state,
        checkpointable_name=checkpointable_name,
        overwrite=overwrite,
        force=force,
        custom_metadata=custom_metadata,
        context=context,
    ).result()


def save_async(
    path: Path,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    overwrite: bool = False,
    force: bool = False,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Takes a snapshot of `state` and saves it in the background; see `save`.

    What cannot be saved raises here. What the storage says is told by the response. The
    caller may change or donate its arrays as soon as this returns: NumPy arrays are
    copied, JAX arrays on accelerators are copied to the host, and JAX arrays on the CPU are
    held until they are written. No storage request is made before this returns.
    """
    with call_of(lambda: options.current(context)) as call:
        chosen = options.current(context)
        refuse_tensors(chosen.checkpoint_layout, "save")
        backend, final = chosen.locate(path)
        check_final(final)
        contents = stage_state(state, checkpointable_name, custom_metadata, chosen, marker=True)

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


def stage_state(
    state: Any,
    name: str,
    custom_metadata: Mapping[str, Any] | None,
    context: options.Context,
    *,
    marker: bool = False,
) -> Contents:
    """Validates everything, then snapshots a PyTree as the contents of a checkpoint."""
    check_item_name(name)
    if custom_metadata is not None:
        check_custom_metadata(custom_metadata)
    if state is None:
        raise ValueError(f"item {name!r} is None, which holds nothing to save")
    return Contents({name: stage_tree(name, state, context)}, custom_metadata, marker=marker)


def check_custom_metadata(custom_metadata: Any) -> None:
    """Refuses custom metadata that is not a JSON object.

    Raises:
        NotJsonError: A `ValueError` that says where in it and what was found.
    """
    if not isinstance(custom_metadata, Mapping):
        kind = type(custom_metadata).__name__
        raise NotJsonError(f"custom_metadata must be a JSON object (a dict), got {kind}")
    require_json(dict(custom_metadata), what="custom_metadata")


def load(
    path: Path,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
    context: options.Context | None = None,
    **restore: Any,
) -> Any:
    """Loads a PyTree, every byte of it verified.

    Without a target the tree comes back as it was saved. With one, its structure must
    match and its leaves say what to make: arrays and `jax.ShapeDtypeStruct` give shape,
    dtype and sharding; `...` skips a leaf; `None` takes it as saved.

    Args:
        path: A path or URL of one checkpoint, holdfast's or Orbax's, or of safetensors files:
            one file, a folder of them, or an index of shards. Those come as NumPy arrays by
            name; a target names the tensors to read, flat or nested, and gets what it asks
            for. See `Context.checkpoint_layout` and `SafetensorsOptions`.
        abstract_state: The target; also the result of `metadata`.
        checkpointable_name: The item; "AUTO" takes `state`, or else the first PyTree, and None
            the checkpoint itself, if one item lies there without a name.
        context: Options of this call.
        **restore: Further fields of `args.PyTreeRestore`: `types`, `as_orbax`, `cast`,
            `fallback_sharding`, and `select` and `rename` to load a part of it or into a
            model with other names.

    Raises:
        FileNotFoundError: No checkpoint is committed there; the message says what is.
        ValueError: The target does not fit (`TreeMismatchError` lists every difference),
            or the bytes are damaged (`DamagedCheckpointError` names file and leaf).
        KeyError: The checkpoint has no such item, or there is no such tensor
            (`TensorNotFoundError`).
    """
    return load_async(
        path, abstract_state, checkpointable_name=checkpointable_name, context=context, **restore
    ).result()


def load_async(
    path: Path,
    abstract_state: Any = None,
    *,
    checkpointable_name: str | None = AUTO,
    context: options.Context | None = None,
    **restore: Any,
) -> AsyncResponse[Any]:
    """Loads in the background; see `load`."""
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    return load_from(
        backend,
        final,
        abstract_state,
        checkpointable_name=checkpointable_name,
        context=chosen,
        **restore,
    )


def load_from(
    backend: StorageBackend,
    final: str,
    abstract_state: Any,
    *,
    checkpointable_name: str | None,
    context: options.Context,
    **restore: Any,
) -> AsyncResponse[Any]:
    """What `load_async` does once the path is resolved."""
    read = state_reader(
        backend,
        abstract_state,
        checkpointable_name=checkpointable_name,
        context=context,
        **restore,
    )
    return AsyncResponse(
        read(final),
        what=f"the load from {backend.root}/{final}",
        deadline=context.asynchronous.timeout_secs,
    )


def state_reader(
    backend: StorageBackend,
    abstract_state: Any,
    *,
    checkpointable_name: str | None,
    context: options.Context,
    **restore: Any,
) -> Callable[[str], Coroutine[Any, Any, Any]]:
    """What loads one PyTree from any final; made, and checked, in the caller's thread."""
    check_loaded_name(checkpointable_name)
    if isinstance(abstract_state, CheckpointMetadata):
        abstract_state = abstract_state.metadata
    wanted = Wanted(abstract_state, **restore)
    tree = PyTreeHandler()
    foreign = has_foreign(context.checkpointables.registry)
    if not foreign:
        wanted.for_handler(tree)

    async def body(stored: StoredCheckpoint) -> Any:
        name = await stored.find_tree(checkpointable_name)
        handler = await find_handler(stored, name, abstract_state, context) if foreign else tree
        return await fetch_item(stored, name, handler or tree, wanted, context)

    async def tensors(found: Found) -> Any:
        request = wanted.for_handler(tree)
        return await load_tensors(found, checkpointable_name, request, context)

    return lambda final: read_by_layout(backend, final, context, body, tensors)


def metadata(
    path: Path,
    checkpointable_name: str | None = AUTO,
    *,
    context: options.Context | None = None,
) -> CheckpointMetadata:
    """Describes a checkpoint without reading arrays and without touching devices.

    Of safetensors files it tells names, shapes and dtypes; `__metadata__` is the custom metadata,
    and the newest file's time that of the commit.

    Args:
        path: A path or URL of one checkpoint.
        checkpointable_name: The item that `metadata` of the result describes; "AUTO" takes
            `state`, or else the first PyTree, and None the checkpoint itself.
        context: Options of this call.

    Raises:
        FileNotFoundError: No checkpoint is committed there.
        KeyError: The checkpoint has no such PyTree (`ItemNotFoundError`).

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save("memory://doc/metadata", {"w": np.ones((2, 3))}, custom_metadata={"run": 4})
        >>> found = hf.metadata("memory://doc/metadata")
        >>> found.metadata["w"].shape, found.custom_metadata
        ((2, 3), {'run': 4})
    """
    chosen = options.current(context)
    check_loaded_name(checkpointable_name)
    return metadata_from(*chosen.locate(path), chosen, name=checkpointable_name)


def metadata_from(
    backend: StorageBackend,
    final: str,
    context: options.Context | None = None,
    *,
    name: str | None = AUTO,
) -> CheckpointMetadata:
    """What `metadata` does once the path is resolved."""
    chosen = options.current(context)

    async def body(stored: StoredCheckpoint) -> CheckpointMetadata:
        return await describe_checkpoint(backend, stored, name=name, context=chosen)

    async def tensors(found: Found) -> CheckpointMetadata:
        return await describe_tensors(found, chosen)

    return _run(read_by_layout(backend, final, chosen, body, tensors))


def is_checkpoint(path: Path, *, context: options.Context | None = None) -> bool:
    """Whether a whole checkpoint is at `path`: holdfast's, Orbax's, or safetensors files.

    A folder of checkpoints is not one, and neither is one of which files are missing, as
    after half a copy. Never raises for a path where nothing is; a record
    that cannot be read raises `RecordUnreadableError`, for it is neither answer.
    """
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    layout = chosen.checkpoint_layout
    found = _run(occupant(backend, final))
    tensors = layout is CheckpointLayout.SAFETENSORS
    if found.kind == "foreign" or tensors:
        if layout is not CheckpointLayout.ORBAX and _run(holds_tensors(backend, final)):
            return True
        return not (tensors or found.unfinished) and _run(holds_unmarked(backend, final))
    if found.kind not in ("ours", "orbax"):
        return False
    try:
        ours = found.kind == "ours"
        _run(open_committed(backend, final) if ours else refuse_no_checkpoint(backend, final))
    except (CheckpointNotFoundError, IncompleteCheckpointError):
        return False
    return True


def verify(path: Path, *, context: options.Context | None = None) -> VerifyReport:
    """Reads every file and every array chunk and compares it with what was saved.

    Needs no devices and no target. Raises only if there is no checkpoint; what is damaged
    is in the report, which is true in a condition if nothing is.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save("memory://doc/verify", {"w": np.ones(3)})
        >>> hf.verify("memory://doc/verify").ok
        True
    """
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    return _run(verify_checkpoint(backend, final, chosen))


def copy(
    source: Path,
    destination: Path,
    *,
    overwrite: bool = False,
    force: bool = False,
    context: options.Context | None = None,
) -> None:
    """Copies a checkpoint to any place on any storage: data first, the commit record last.

    Every array chunk of the source is verified first; each file is compared with the source's
    manifest when it is read and read back before the copy is committed. Whole on return, or
    not there at all.

    Args:
        source: A path or URL of one holdfast checkpoint. It is never touched.
        destination: A path or URL of the copy.
        overwrite: Replace a checkpoint that is there, as `save` does.
        force: Replace it also in a run to which another process writes, as `save` does.
        context: Options of this call.

    Raises:
        FileNotFoundError: No checkpoint is committed at `source`.
        FileExistsError: Something is at `destination`; it was not touched.
        LeaseHeldError: It is in a run to which another process writes, and `force` is false.
        ValueError: The two are one place or one lies in the other, or the source is damaged
            (`DamagedCheckpointError`); nothing was written.
        NotImplementedError: Orbax wrote the source: load it and save it.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save("memory://doc/source", {"w": np.arange(3)})
        >>> hf.copy("memory://doc/source", "memory://doc/destination", overwrite=True)
        >>> hf.load("memory://doc/destination")
        {'w': array([0, 1, 2])}
    """
    copy_async(source, destination, overwrite=overwrite, force=force, context=context).result()


def copy_async(
    source: Path,
    destination: Path,
    *,
    overwrite: bool = False,
    force: bool = False,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Copies in the background; see `copy`."""
    chosen = options.current(context)
    from_backend, from_final = chosen.locate(source)
    to_backend, to_final = chosen.locate(destination)
    check_final(to_final)

    async def run() -> None:
        if (await occupant(from_backend, from_final)).kind == "ours":
            report = await verify_checkpoint(from_backend, from_final, chosen)
            if not report.ok:
                raise DamagedCheckpointError(
                    f"the source is damaged and was not copied: {report.problems[0]}",
                    key=from_final,
                    root=from_backend.root,
                )
        if overwrite:
            await refuse_if_taken(to_backend, to_final, replace=True, force=force)
        await copy_checkpoint(from_backend, from_final, to_backend, to_final, replace=overwrite)

    return AsyncResponse(
        run(),
        what=f"the copy from {source} to {destination}",
        deadline=chosen.asynchronous.timeout_secs,
    )


def _run(awaitable: Awaitable[T]) -> T:
    async def wrap() -> T:
        return await awaitable

    return get_loop().run(wrap())


__all__: Sequence[str] = [
    "copy",
    "copy_async",
    "is_checkpoint",
    "load",
    "load_async",
    "metadata",
    "save",
    "save_async",
    "verify",
]
