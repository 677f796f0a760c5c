"""Saving one checkpoint in parts: by several calls, of one process or of one after another.

    partial.save(path, {"encoder": encoder})
    partial.save(path, {"decoder": decoder})
    partial.finalize(path)

Until `finalize` nothing is visible at the path; then everything is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.checkpointables import stage_checkpointables
from holdfast_checkpointer.engine import partial as engine
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.names import STATE, check_final
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import Contents, place_of, start_save
from holdfast_checkpointer.engine.together import by_primary
from holdfast_checkpointer.functions import stage_state
from holdfast_checkpointer.safetensors.options import refuse_tensors

Path = str | PathLike[str]


def save(
    path: Path,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> None:
    """Saves a part of a PyTree, durable on return; it becomes visible with `finalize`.

    Parts may come from any process and after any restart, and in a job of several each part from
    all of them; those that nobody adds to for
    seven days are given up by the next sweep. Two parts cannot hold the same leaf, and no
    leaf can lie where another part has a leaf, None or an empty container.

    Args:
        path: A path or URL of the checkpoint.
        state: A PyTree with some of the checkpoint's leaves, in their places.
        checkpointable_name: The item that it is a part of.
        custom_metadata: A JSON object; the checkpoint gets the keys of all parts.
        context: Options of this call.

    Raises:
        PartialSaveReplacementError: A `ValueError`: something of it is saved already; lists
            what. Nothing was written, or, if the other part came at the same time, nothing
            was kept. The parts that were saved stay.
        FileExistsError: A checkpoint, or something else, is at `path`.
        ValueError: A leaf, a name or the metadata cannot be saved. Nothing was created.
        AttemptLostError: `finalize` was called meanwhile; this part is not in.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.partial.save("memory://doc/partial", {"a": np.arange(2)})
        >>> hf.partial.save("memory://doc/partial", {"b": 3})
        >>> hf.is_checkpoint("memory://doc/partial")
        False
        >>> hf.partial.finalize("memory://doc/partial")
        >>> hf.load("memory://doc/partial")
        {'a': array([0, 1]), 'b': 3}
    """
    save_async(
        path,
        state,
        checkpointable_name=checkpointable_name,
        custom_metadata=custom_metadata,
        context=context,
    ).result()


def save_async(
    path: Path,
    state: Any,
    *,
    checkpointable_name: str = STATE,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Takes a snapshot and saves the part in the background; see `save`.

    Wait for it before `finalize`: a part that comes later is refused.
    """

    def stage(chosen: options.Context) -> Contents:
        refuse_tensors(chosen.checkpoint_layout, "partial.save")
        return stage_state(state, checkpointable_name, custom_metadata, chosen, marker=True)

    return _save(path, stage, context)


def save_checkpointables(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> None:
    """Saves some items, or parts of PyTree items, of a checkpoint; see `save`.

    An item that is no PyTree is saved by one call as a whole.
    """
    save_checkpointables_async(
        path, checkpointables, custom_metadata=custom_metadata, context=context
    ).result()


def save_checkpointables_async(
    path: Path,
    checkpointables: Mapping[str, Any],
    *,
    custom_metadata: Mapping[str, Any] | None = None,
    context: options.Context | None = None,
) -> AsyncResponse[None]:
    """Takes a snapshot and saves in the background; see `save_checkpointables`."""

    def stage(chosen: options.Context) -> Contents:
        refuse_tensors(chosen.checkpoint_layout, "partial.save_checkpointables")
        return stage_checkpointables(checkpointables, custom_metadata, chosen)

    return _save(path, stage, context)


def _save(
    path: Path, stage: Callable[[options.Context], Contents], context: options.Context | None
) -> AsyncResponse[None]:
    with call_of(lambda: options.current(context)) as call:
        chosen = options.current(context)
        contents = stage(chosen)
        backend, final = chosen.locate(path)
        check_final(final)
    return start_save(
        contents,
        engine.save_part(backend, final, contents, chosen, call),
        what=f"the save of a part of {path}",
        deadline=chosen.asynchronous.timeout_secs,
    )


def finalize(path: Path, *, context: options.Context | None = None) -> None:
    """Commits what was saved in parts as one ordinary checkpoint: all of it, or nothing yet.

    No array is read: chunks are linked or copied as they are, with their digests. After a
    crash at any point call it again; nothing is lost, and nothing is done twice. In a job of
    several processes the primary does it, and those that call it, too, wait.

    Args:
        path: What `save` was given.
        context: Options of this call.

    Raises:
        FileNotFoundError: Nothing was saved there in parts.
        FileExistsError: A checkpoint, or something else, is there already.
        DamagedCheckpointError: A part is not what was saved.

    Examples:
        >>> import holdfast as hf
        >>> hf.partial.finalize("memory://doc/nothing")
        Traceback (most recent call last):
        ...
        holdfast_storage.errors.CheckpointNotFoundError: nothing was saved here ...
    """
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    check_final(final)

    async def merge() -> None:
        await engine.finalize(backend, final)

    AsyncResponse(
        by_primary(chosen, "finalization", place_of(backend, final), merge),
        what=f"the finalization of {path}",
        deadline=chosen.asynchronous.timeout_secs,
        afterwards=chosen.asynchronous.post_finalization_callback,
    ).result()
