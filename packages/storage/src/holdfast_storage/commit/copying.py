"""Copying one committed checkpoint to any other place: data first, the record last."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping

from holdfast_metadata import CommitRecord, ManifestEntry, digest_bytes
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.layout import EMPTY_FOLDER
from holdfast_storage.commit.occupancy import occupant
from holdfast_storage.commit.opening import CommittedArea, read_checked, reading
from holdfast_storage.commit.record import read_record
from holdfast_storage.commit.staging import StagingArea
from holdfast_storage.commit.writing import write_attempt
from holdfast_storage.streaming import ByteBudget

BYTES_AT_ONCE = 512 << 20


async def copy_checkpoint(
    source: StorageBackend,
    source_final: str,
    target: StorageBackend,
    target_final: str,
    *,
    replace: bool = False,
    bytes_at_once: int = BYTES_AT_ONCE,
) -> CommitRecord:
    """Copies every file of a checkpoint into an attempt at the target, and commits that.

    Each file is compared with the source's manifest when it is read, and read back from the
    target before the commit. The source is never touched.

    Args:
        source: Where it is.
        source_final: Its key there.
        target: Where the copy goes.
        target_final: The copy's key there.
        replace: Replace a checkpoint that is there, as an overwriting save does.
        bytes_at_once: How much may be in memory; a larger file goes alone.

    Raises:
        ValueError: Source and target are the same place, or one lies in the other.
        CheckpointNotFoundError: Nothing is committed at the source.
        UnsupportedOperationError: Orbax wrote the source.
        DamagedCheckpointError: The source's bytes are not those that were saved, or the copy's
            are not the source's; the target is as before.
        CommitConflictError: A checkpoint is at the target, and `replace` is false.
        DestinationOccupiedError: Something else is at the target.
    """
    _refuse_overlap(_place(source, source_final), _place(target, target_final))
    found = await occupant(source, source_final)
    if found.kind == "orbax":
        raise errors.UnsupportedOperationError(
            "Orbax wrote this checkpoint, which has no digests to verify a copy by; load it and "
            "save it at the new place",
            key=source_final,
            root=source.root,
        )
    there = await occupant(target, target_final)
    if there.kind in ("ours", "orbax") and not replace:
        raise errors.CommitConflictError(
            "a checkpoint exists here already; pass overwrite=True to replace it",
            key=target_final,
            root=target.root,
        )

    async def body(area: CommittedArea) -> CommitRecord:
        async def write(staging: StagingArea) -> None:
            await copy_folders(source, area, staging)
            paths = {path: path for path in area.manifest.by_path}
            await copy_files(source, area, target, staging, paths, bytes_at_once=bytes_at_once)

        return await write_attempt(target, target_final, write, replace=replace)

    return await reading(source, source_final, body)


async def rewrite_checkpoint(
    backend: StorageBackend,
    area: CommittedArea,
    *,
    keep: Callable[[str], bool],
    written: Mapping[str, bytes],
    bytes_at_once: int = BYTES_AT_ONCE,
) -> CommitRecord:
    """Replaces a checkpoint by one with some of its files, and others, in one commit.

    The files that stay are copied, each compared with the manifest. Readers see the old
    checkpoint until the new one is committed.

    Args:
        backend: Where it is.
        area: The checkpoint, open.
        keep: Which of its files stay, by path.
        written: Files of the new one that are not copied, by path.
        bytes_at_once: How much may be in memory; a larger file goes alone.

    Raises:
        CommitConflictError: It was replaced meanwhile; the new one is untouched.
        DamagedCheckpointError: Its bytes are not those that were saved; it is as before.
    """

    async def write(staging: StagingArea) -> None:
        now = await read_record(backend, area.final)
        if now.attempt != area.record.attempt:
            raise errors.CommitConflictError(
                "another checkpoint was committed here meanwhile; it is untouched",
                key=area.final,
                root=backend.root,
            )
        await copy_folders(backend, area, staging, keep=keep)
        kept = {path: path for path in area.manifest.by_path if keep(path)}
        await copy_files(backend, area, backend, staging, kept, bytes_at_once=bytes_at_once)
        for path, data in written.items():
            await staging.put(path, data)

    return await write_attempt(backend, area.final, write, replace=True)


def _place(backend: StorageBackend, final: str) -> str:
    return f"{backend.root.rstrip('/')}/{final}"


def _refuse_overlap(source: str, target: str) -> None:
    if source == target:
        raise ValueError(f"{source} cannot be copied onto itself")
    if source.startswith(f"{target}/") or target.startswith(f"{source}/"):
        raise ValueError(f"of {source} and {target} one lies in the other; copy to another place")


async def copy_folders(
    source: StorageBackend,
    area: CommittedArea,
    staging: StagingArea,
    *,
    keep: Callable[[str], bool] = lambda path: True,
) -> None:
    """Makes the empty folders of a checkpoint in an attempt; no file stands for those.

    Args:
        source: Where the checkpoint is.
        area: The checkpoint.
        staging: The attempt.
        keep: Which of them, by path with a `/` at the end.
    """
    path = source.local_path(keys.join(area.final, area.record.data))
    if path is None:
        return
    folders = [name for name in await asyncio.to_thread(_empty_folders, path) if keep(f"{name}/")]
    for name in folders:
        if not await asyncio.to_thread(staging.make_folder, name):
            await staging.child(name).put(EMPTY_FOLDER, b"")


def _empty_folders(path: str) -> list[str]:
    walked = os.walk(path)
    return [os.path.relpath(at, path) for at, dirs, files in walked if not dirs and not files]


async def copy_files(
    source: StorageBackend,
    area: CommittedArea,
    target: StorageBackend,
    staging: StagingArea,
    paths: Mapping[str, str],
    *,
    bytes_at_once: int = BYTES_AT_ONCE,
    link: bool = False,
) -> None:
    """Copies files of a checkpoint into an attempt.

    Args:
        source: Where the checkpoint is.
        area: The checkpoint.
        target: Where the attempt is.
        staging: The attempt.
        paths: The files to copy, and where each goes.
        bytes_at_once: How much may be in memory; a larger file goes alone.
        link: Link them instead where the store can; for a source that is about to go.

    Raises:
        DamagedCheckpointError: A file is not what was saved, or its copy is not the file.
    """
    budget = ByteBudget(bytes_at_once)
    limit = asyncio.Semaphore(max(1, min(source.hints.max_concurrency, 16)))
    prefix = keys.join(area.final, area.record.data)

    async def copy(entry: ManifestEntry) -> None:
        key, path = keys.join(prefix, entry.path), paths[entry.path]
        async with limit:
            if link and source is target and await staging.link(path, key, entry):
                return
            async with budget.taking(entry.size):
                data = await read_checked(source, key, entry)
                await staging.put(path, data)
                await _compare(target, staging, path, data)

    try:
        async with asyncio.TaskGroup() as group:
            for path in paths:
                group.create_task(copy(area.manifest.by_path[path]))
    except* errors.StorageError as failed:
        raise failed.exceptions[0] from None


async def _compare(target: StorageBackend, staging: StagingArea, path: str, data: bytes) -> None:
    digest = digest_bytes(data)
    if digest_bytes(await staging.get(path)) != digest:
        raise errors.DamagedCheckpointError(
            f"the copy of {path!r} is not what was written", file=path, root=target.root
        )
