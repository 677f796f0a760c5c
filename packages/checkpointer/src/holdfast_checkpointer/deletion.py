"""Deleting a checkpoint, or one item of it."""

from __future__ import annotations

from os import PathLike

from holdfast_checkpointer import options
from holdfast_checkpointer.engine.names import check_item_name
from holdfast_checkpointer.engine.removal import remove_checkpoint, remove_item
from holdfast_checkpointer.engine.response import AsyncResponse

Path = str | PathLike[str]


def delete(
    path: Path,
    *,
    checkpointable_name: str | None = None,
    missing_ok: bool = False,
    force: bool = False,
    context: options.Context | None = None,
) -> bool:
    """Deletes one committed checkpoint, or one item of it.

    A checkpoint is un-committed first, then its data removed; it may be damaged. Of one that Orbax
    wrote, everything in its folder is removed. An item of one that holdfast wrote goes by replacing
    the checkpoint with one that lacks it, in one commit: readers see either. What stays is copied
    for that, and verified.

    Args:
        path: A path or URL of the checkpoint itself, never of a run.
        checkpointable_name: The item to delete; None deletes the checkpoint.
        missing_ok: Return False instead of raising if it is not there.
        force: Delete it also from a run to which another process writes. That process is told
            nothing of it.
        context: Options of this call.

    Returns:
        Whether it was there.

    Raises:
        FileNotFoundError: No checkpoint is committed there, or it has no such item.
        ValueError: The name is none, or the item is the last one, or other checkpoints are in the
            folder of one that Orbax wrote.
        CommitConflictError: The checkpoint was replaced meanwhile; the new one was not touched.
        NotImplementedError: One item of what Orbax wrote was asked for; it was not touched.
        LeaseHeldError: Another process writes to the run in which this is, and `force` is false;
            it was not touched.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> hf.save_checkpointables("memory://doc/delete", {"a": np.ones(2), "b": np.ones(3)})
        >>> hf.delete("memory://doc/delete", checkpointable_name="a")
        True
        >>> hf.load_checkpointables("memory://doc/delete")
        {'b': array([1., 1., 1.])}
    """
    return delete_async(
        path,
        checkpointable_name=checkpointable_name,
        missing_ok=missing_ok,
        force=force,
        context=context,
    ).result()


def delete_async(
    path: Path,
    *,
    checkpointable_name: str | None = None,
    missing_ok: bool = False,
    force: bool = False,
    context: options.Context | None = None,
) -> AsyncResponse[bool]:
    """Deletes in the background; see `delete`. A name that is none raises here."""
    chosen = options.current(context)
    backend, final = chosen.locate(path)
    if checkpointable_name is None:
        work = remove_checkpoint(backend, final, missing_ok=missing_ok, force=force)
    else:
        check_item_name(checkpointable_name)
        work = remove_item(backend, final, checkpointable_name, missing_ok=missing_ok, force=force)
    return AsyncResponse(
        work,
        what=f"the deletion of {checkpointable_name or 'everything'} in {path}",
        deadline=chosen.asynchronous.timeout_secs,
    )
