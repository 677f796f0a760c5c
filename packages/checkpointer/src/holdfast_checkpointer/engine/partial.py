"""Checkpoints that are saved in parts: what parts hold, which go together, and their merge."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.saving import (
    Contents,
    discard,
    documents_of,
    place_of,
    write_checkpoint,
    write_step_documents,
)
from holdfast_checkpointer.engine.together import JointSave, operation_for
from holdfast_checkpointer.errors import PartialSaveReplacementError
from holdfast_checkpointer.items.merged import ItemPart, merge_items
from holdfast_checkpointer.items.stored import open_item
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context
from holdfast_checkpointer.trees.joining import join
from holdfast_metadata import TREE_FILE, CommitRecord, Node
from holdfast_metadata.partial import PARTIAL_FILE
from holdfast_storage import (
    CheckpointNotFoundError,
    CommitConflictError,
    CommitUnknownError,
    DamagedCheckpointError,
    DestinationOccupiedError,
    StorageBackend,
    StorageError,
)
from holdfast_storage.commit import (
    CommittedArea,
    PartialSession,
    StagingArea,
    add_part,
    close_session,
    copy_files,
    copy_folders,
    end_session,
    is_merged,
    occupant,
    read_session,
    write_attempt,
)

_log = logging.getLogger(__name__)
_DATABASE = ("manifest.ocdbt", "d/", "ocdbt.process_")  # several processes have one each


@dataclass
class _Together:
    """Parts that go together, so far.

    Attributes:
        trees: By item; None for an item that is no PyTree.
        metadata: The custom metadata of all.
    """

    trees: dict[str, Node | None] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def add(self, trees: Mapping[str, Node | None], metadata: Mapping[str, Any]) -> list[str]:
        """Takes one more part; returns what stands against it, in words."""
        problems = []
        for name, tree in trees.items():
            if name not in self.trees:
                self.trees[name] = tree
                continue
            known = self.trees[name]
            if tree is None or known is None:
                problems.append(f"item {name!r}: saved already")
                continue
            self.trees[name], found = join(known, tree)
            problems += [f"item {name!r}: {problem}" for problem in found]
        for key, value in metadata.items():
            if self.metadata.setdefault(key, value) != value:
                problems.append(f"custom_metadata[{key!r}]: {self.metadata[key]!r} and {value!r}")
        return problems


async def save_part(
    backend: StorageBackend,
    final: str,
    contents: Contents,
    context: Context,
    call: Call | None = None,
) -> None:
    """Saves one part of a checkpoint, in all processes of the job; see `partial.save`."""
    job = Membership.of(context.multiprocessing)
    if job.alone:

        async def save(place: str) -> CommitRecord:
            return await write_checkpoint(backend, place, contents, replace=False, context=context)

        await _add_part(backend, final, contents, save)
        return
    deadline_s = context.multiprocessing.deadline_secs
    try:
        async with operation_for(job, deadline_s, place_of(backend, final), call) as operation:
            joint = JointSave(operation, backend, final, contents.items, replace=False)
            await joint.agree()
            if not job.is_primary:
                await joint.follow()
                return
            operation.enter("the look at the other parts")

            async def lead(place: str) -> CommitRecord:
                part = dataclasses.replace(joint, final=place)
                return await part.commit(documents_of(contents, place), replace=False)

            record = await _add_part(backend, final, contents, lead)
            await operation.conclude(record.to_bytes())
    finally:
        await discard(contents)


async def _add_part(
    backend: StorageBackend,
    final: str,
    contents: Contents,
    write: Callable[[str], Awaitable[CommitRecord]],
) -> CommitRecord:
    """Compares with the other parts, writes this one at a place, and makes it count."""
    await _refuse_if_there(backend, final)
    trees = {name: item.staged.tree for name, item in contents.items.items()}
    mine = _Together()
    mine.add(trees, contents.custom_metadata or {})
    session = await read_session(backend, final)
    written: list[CommitRecord] = []

    async def admit(parts: Sequence[str]) -> None:
        for part in parts:
            saved, metadata = await _read_part(backend, session, part)
            problems = mine.add(saved, metadata)
            if problems:
                raise PartialSaveReplacementError(problems)

    async def save(place: str) -> str:
        written.append(await write(place))
        return str(written[0].attempt)

    await add_part(backend, final, save, admit)
    return written[0]


async def _refuse_if_there(backend: StorageBackend, final: str) -> None:
    found = await occupant(backend, final)
    where = {"key": final, "root": backend.root}
    if found.kind in ("ours", "orbax"):
        raise CommitConflictError("a checkpoint is here already", **where)
    if found.kind == "foreign":
        raise DestinationOccupiedError(
            f"something that is no checkpoint is here ({found.detail})", **where
        )


async def _read_part(
    backend: StorageBackend, session: PartialSession, part: str
) -> tuple[dict[str, Node | None], Mapping[str, Any]]:
    async def body(stored: StoredCheckpoint) -> tuple[dict[str, Node | None], Mapping[str, Any]]:
        trees: dict[str, Node | None] = {}
        for name in stored.items:
            area = stored.item_area(name)
            is_tree = TREE_FILE in await area.names()
            trees[name] = (await open_item(area, digests=False)).tree.root if is_tree else None
        return trees, stored.step.custom_metadata

    return await read_checkpoint(backend, session.place(part), body)


async def finalize(backend: StorageBackend, final: str) -> None:
    """Merges what was saved in parts and commits it; see `partial.finalize`."""
    session = await read_session(backend, final)
    if not session.begun:
        await _refuse_if_there(backend, final)
        raise CheckpointNotFoundError(
            "nothing was saved here with partial.save", key=final, root=backend.root
        )
    try:
        if not await is_merged(backend, final, session.parts):
            await _refuse_if_there(backend, final)
            session = await close_session(backend, final)
            await _merge(backend, session)
    except CommitUnknownError:
        raise
    except StorageError:
        # Another call may have been faster, and have cleared the parts away.
        if not await is_merged(backend, final, session.parts):
            raise
    try:
        await end_session(backend, session)
    except StorageError:
        _log.warning("%s is committed; its parts could not be removed", final, exc_info=True)


async def _merge(backend: StorageBackend, session: PartialSession) -> None:
    parts = [await _open_part(backend, session, part) for part in session.parts]

    async def write(area: StagingArea) -> None:
        await _write_merged(backend, session, parts, area)

    await write_attempt(backend, session.final, write)


async def _open_part(
    backend: StorageBackend, session: PartialSession, part: str
) -> StoredCheckpoint:
    async def body(stored: StoredCheckpoint) -> StoredCheckpoint:
        return stored

    try:
        return await read_checkpoint(backend, session.place(part), body)
    except CheckpointNotFoundError as error:
        raise DamagedCheckpointError(
            f"the part {part} of {session.final!r} is gone, so that the checkpoint cannot be "
            "whole: save it again under another name",
            key=session.place(part),
            root=backend.root,
        ) from error


async def _write_merged(
    backend: StorageBackend,
    session: PartialSession,
    parts: Sequence[StoredCheckpoint],
    area: StagingArea,
) -> None:
    holders: dict[str, list[StoredCheckpoint]] = {}
    handlers: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    for part in parts:
        metadata |= part.step.custom_metadata
        for name in part.items:
            holders.setdefault(name, []).append(part)
            handlers.setdefault(name, str(part.recorded_handler(name)))
    for name, found in holders.items():
        await _write_item(backend, area, name, found)
    started = [p.step.init_timestamp_nsecs for p in parts if p.step.init_timestamp_nsecs]
    await write_step_documents(
        area,
        session.final,
        handlers,
        metadata,
        marker=True,
        started=min(started, default=time.time_ns()),
    )
    assert session.closed is not None
    await area.put(PARTIAL_FILE, session.closed.to_bytes())


async def _write_item(
    backend: StorageBackend, area: StagingArea, name: str, holders: Sequence[StoredCheckpoint]
) -> None:
    if len(holders) == 1:
        paths = {path: path for path in _files(holders[0], name)}
        source = holders[0].area
        assert isinstance(source, CommittedArea)
        await copy_folders(backend, source, area, keep=lambda path: path.startswith(f"{name}/"))
        await _copy(backend, holders[0], area, paths)
        return
    parts = []
    for number, holder in enumerate(holders):
        folder = f"ocdbt.part_{number}"
        paths = {
            path: f"{name}/{folder}/{path.removeprefix(f'{name}/')}"
            for path in _files(holder, name)
            if path.removeprefix(f"{name}/").startswith(_DATABASE)
        }
        await _copy(backend, holder, area, paths)
        stored = await open_item(holder.item_area(name))
        parts.append(ItemPart(stored, folder if paths else None))
    await merge_items(area.child(name), parts)


def _files(holder: StoredCheckpoint, name: str) -> list[str]:
    area = holder.area
    assert isinstance(area, CommittedArea)
    return [path for path in area.manifest.by_path if path.startswith(f"{name}/")]


async def _copy(
    backend: StorageBackend, holder: StoredCheckpoint, area: StagingArea, paths: Mapping[str, str]
) -> None:
    source = holder.area
    assert isinstance(source, CommittedArea)
    await copy_files(backend, source, backend, area, paths, link=True)
