"""Removing a checkpoint that Orbax wrote: un-committed first, for both libraries.

It has no record. Where folders move, one rename takes it out of sight, and a mark of ours in
it says that it is to be deleted. Elsewhere a record that says so hides it from holdfast, and
the files by which Orbax knows it are deleted before the others. What Orbax writes there
later is newer, by the store's clock, than what the record speaks of, and stays.
"""

from __future__ import annotations

import asyncio

from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity, layout
from holdfast_storage.commit.occupancy import ORBAX_MARKS, Occupant, occupant
from holdfast_storage.commit.pace import Pace
from holdfast_storage.values import IfAbsent, ObjectInfo

_FIRST = (layout.ADVISORY_FILE, "_CHECKPOINT_METADATA", *sorted(ORBAX_MARKS))
_AT_ONCE = 16


async def require_orbax(backend: StorageBackend, final: str) -> Occupant:
    """Refuses to remove what is no finished checkpoint of Orbax's.

    Raises:
        CheckpointNotFoundError: Nothing is there, or something foreign.
        CommitConflictError: A checkpoint of holdfast's is there by now.
        InvalidLayoutError: Other checkpoints are in it, so that it is a folder of them.
    """
    found = await occupant(backend, final)
    where = {"key": final, "root": backend.root}
    if found.kind == "ours":
        raise errors.CommitConflictError("holdfast committed here meanwhile; it stays", **where)
    if found.kind != "orbax":
        what = f" ({found.detail})" if found.detail else ""
        raise errors.CheckpointNotFoundError(f"no checkpoint of Orbax's is here{what}", **where)
    for prefix in (await backend.children(final)).prefixes:
        if keys.leaf(prefix).startswith(layout.INNER_PREFIX):
            continue
        files = {keys.leaf(info.key) for info in (await backend.children(prefix)).objects}
        if files & {COMMIT_FILE, "_CHECKPOINT_METADATA"}:
            raise errors.InvalidLayoutError(
                f"other checkpoints are in this one, as {keys.leaf(prefix)!r}; nothing was touched",
                **where,
            )
    return found


async def newest_ns(backend: StorageBackend, final: str) -> int:
    """The store's time of the newest file of Orbax's in a final, in nanoseconds."""
    return max([_ns(info) for info in await _files(backend, final)], default=0)


async def delete_files(backend: StorageBackend, final: str, until_ns: int, pace: Pace) -> None:
    """Deletes Orbax's files in a final that are not newer; those that it looks for first."""
    found = [info.key for info in await _files(backend, final) if _ns(info) <= until_ns]
    marks = [keys.join(final, name) for name in _FIRST]
    for key in sorted(set(found).intersection(marks), key=marks.index):
        await pace.turn()
        await backend.delete(key)
    limit = asyncio.Semaphore(_AT_ONCE)

    async def delete(key: str) -> None:
        async with limit:
            await pace.turn()
            await backend.delete(key)

    await asyncio.gather(*(delete(key) for key in found if key not in marks))


async def _files(backend: StorageBackend, final: str) -> list[ObjectInfo]:
    """What lies in a final that is not ours."""
    return [
        info
        async for info in backend.walk(final)
        if not keys.relative(info.key, final).startswith((layout.INNER_PREFIX, COMMIT_FILE))
    ]


def _ns(info: ObjectInfo) -> int:
    return int(info.modified * 1e9)


async def move_out(backend: StorageBackend, final: str, aside: str) -> None:
    """Moves Orbax's checkpoint away by one rename; anything else that was moved goes back.

    Raises:
        CheckpointNotFoundError: None is there (any more).
        CommitConflictError: Something else came there meanwhile; it stays.
    """
    where = {"key": final, "root": backend.root}
    await require_orbax(backend, final)
    try:
        await backend.rename_prefix(final, aside)
    except errors.ObjectNotFoundError as error:
        raise errors.CheckpointNotFoundError("it was removed meanwhile", **where) from error
    except (errors.TransientStorageError, errors.StorageTimeoutError):
        if (await occupant(backend, aside)).kind != "orbax":
            raise
    found = await occupant(backend, aside)
    if found.kind in ("orbax", "absent") or await is_marked(backend, aside):
        return  # as it was, or a sweep has taken over
    try:
        await backend.rename_prefix(aside, final)
    except errors.ObjectNotFoundError:
        return  # a sweep has deleted it, or put it back
    raise errors.CommitConflictError(
        "what is here is not the checkpoint of Orbax's any more; it stays", **where
    )


async def is_marked(backend: StorageBackend, aside: str) -> bool:
    """Whether a folder that was moved out carries the mark that it is to be deleted."""
    try:
        await backend.stat(keys.join(aside, ATTEMPT_FILE))
    except errors.ObjectNotFoundError:
        return False
    return True


async def mark(backend: StorageBackend, aside: str) -> bool:
    """Says in a folder that was moved out that it is to be deleted; False if it is gone."""
    said = identity.new_mark(layout.new_attempt_id(), "removal")
    try:
        key = keys.join(aside, ATTEMPT_FILE)
        await backend.put(key, said.to_bytes(), condition=IfAbsent(), parents=False)
    except errors.ObjectExistsError:
        return True
    except errors.ObjectNotFoundError:
        return False
    return True


async def settle_moved(backend: StorageBackend, final: str, aside: str) -> bool:
    """For a sweep: whether a folder that was moved out may be deleted; else it goes back.

    Raises:
        ObjectExistsError: It is none of Orbax's, and its place is taken.
    """
    found = await occupant(backend, aside)
    if found.kind == "orbax":
        return await mark(backend, aside)
    if found.kind == "absent" or await is_marked(backend, aside):
        return True
    await backend.rename_prefix(aside, final)
    return False
