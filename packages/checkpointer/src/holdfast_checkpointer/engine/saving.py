"""How a checkpoint is written: items into an attempt, then one commit."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.desk import Desk, carried_through
from holdfast_checkpointer.engine.names import ORBAX_COMMIT, ORBAX_MARKER
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.together import JointSave, operation_for
from holdfast_checkpointer.errors import UnsupportedOptionError
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import AtomicityMode, Context
from holdfast_metadata import CommitRecord
from holdfast_metadata.orbax import STEP_METADATA_FILE, StepMetadata
from holdfast_storage import (
    CommitConflictError,
    StorageBackend,
    WriteArea,
)
from holdfast_storage.commit import occupant, write_attempt
from holdfast_storage.lease import refuse_if_written

T = TypeVar("T")
R = TypeVar("R", bound=AsyncResponse[Any])
Commit = Callable[[bool], Awaitable[CommitRecord]]
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Contents:
    """Everything that goes into one checkpoint.

    Attributes:
        items: By name, each in a folder of its own; or one item under "" that lies in the
            checkpoint itself (the flat layout of a v0 checkpointer).
        custom_metadata: The caller's JSON object; a copy, for the caller may change it while
            the checkpoint is written.
        marker: Whether to add the file by which Orbax's v1 functions know their own.
    """

    items: Mapping[str, Item]
    custom_metadata: Mapping[str, Any] | None = None
    marker: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "custom_metadata", copy.deepcopy(self.custom_metadata))

    @property
    def flat(self) -> bool:
        """Whether the one item lies in the checkpoint itself."""
        return "" in self.items


def start_save(contents: Contents, write: Coroutine[Any, Any, T], **about: Any) -> AsyncResponse[T]:
    """Starts to write in the background; returns once no item needs the caller any more.

    Args:
        contents: What is written.
        write: The work, not started.
        **about: Further arguments of `AsyncResponse`.
    """
    return attended(contents, lambda: AsyncResponse(write, **about))


def attended(contents: Contents, start: Callable[[], R]) -> R:
    """Starts a save and runs, in this thread, what its items call here; returns its response."""
    with Desk(sum(item.staged.calls for item in contents.items.values())) as desk:
        response = start()
        desk.attend(response)
    return response


async def write_checkpoint(
    backend: StorageBackend,
    final: str,
    contents: Contents,
    *,
    replace: bool,
    force: bool = False,
    context: Context,
    call: Call | None = None,
    around: Callable[[Commit], Awaitable[CommitRecord]] | None = None,
) -> CommitRecord:
    """Writes and commits one checkpoint, or leaves nothing.

    In a job of several processes all of them call this.

    Args:
        backend: The storage.
        final: The prefix of the checkpoint.
        contents: What is written.
        replace: Whether the caller asked to replace a checkpoint that is there.
        force: Replace it also in a run to which another process writes.
        context: Options.
        call: Which call of this process it is, in a job of several; see `call_of`.
        around: What the process that commits does before and after: it is given the rest of the
            work, which takes whether to replace, and awaits it. The others wait, and are told
            if it fails.

    Raises:
        LeaseHeldError: It would replace a checkpoint in such a run; nothing was written.
        DisagreementError: The processes do not save the same; on all of them.
        RemoteProcessError: Another process of the job failed.
        UnsupportedOptionError: The store does not commit as `atomicity` asks.
        CommitConflictError: A checkpoint is there and `replace` is false; or another
            writer got there first.
        DestinationOccupiedError: Something that is no checkpoint is there.
        CommitUnknownError: The outcome could not be read back; nothing was deleted.
    """
    documents = documents_of(contents, final)

    async def write(area: WriteArea) -> None:
        await _write_items(area, contents)
        await documents(area)

    async def alone(replaces: bool) -> CommitRecord:
        await refuse_if_taken(backend, final, replace=replaces, force=force)
        return await write_attempt(backend, final, write, replace=replaces)

    job = Membership.of(context.multiprocessing)
    if job.alone:
        await _refuse_other_commit(backend, context.atomicity.mode)
        return await (around(alone) if around else alone(replace))
    deadline_s = context.multiprocessing.deadline_secs
    try:
        async with operation_for(job, deadline_s, place_of(backend, final), call) as operation:
            save = JointSave(operation, backend, final, contents.items, replace)
            await save.agree()
            if not job.is_primary:
                return await save.follow()
            operation.enter("the look at the destination")
            await _refuse_other_commit(backend, context.atomicity.mode)

            async def lead(replaces: bool) -> CommitRecord:
                await refuse_if_taken(backend, final, replace=replaces, force=force)
                return await save.lead(documents, replace=replaces)

            return await (around(lead) if around else lead(replace))
    finally:
        await discard(contents)


def documents_of(contents: Contents, final: str) -> Callable[[WriteArea], Awaitable[None]]:
    """Writes what describes a checkpoint whose save begins now; see `write_step_documents`."""
    started = time.time_ns()

    async def write(area: WriteArea) -> None:
        handlers: Any = {name: item.recorded_as for name, item in contents.items.items()}
        await write_step_documents(
            area,
            final,
            handlers[""] if contents.flat else handlers,
            contents.custom_metadata,
            marker=contents.marker,
            started=started,
        )

    return write


def place_of(backend: StorageBackend, final: str) -> str:
    """What a checkpoint is called in messages, the same on every process."""
    return f"{backend.root.rstrip('/')}/{final}"


async def _refuse_other_commit(backend: StorageBackend, mode: AtomicityMode) -> None:
    if mode is AtomicityMode.AUTO:
        return
    renames = (await backend.commit_strategy()).renames
    if renames != (mode is AtomicityMode.ATOMIC_RENAME):
        does, would = ("a rename", "atomic_rename") if renames else ("its record", "commit_file")
        raise UnsupportedOptionError(
            f"mode={mode.value!r}: a checkpoint in {backend.root} becomes visible by {does}; "
            f"accepted there: 'auto' and {would!r}. Nothing was written"
        )


async def refuse_if_taken(
    backend: StorageBackend, final: str, *, replace: bool, force: bool = False
) -> None:
    """Looks whether a save could commit here; the commit decides it.

    Raises:
        CommitConflictError: A checkpoint is there, and is not to be replaced.
        LeaseHeldError: It is in a run to which another process writes, without `force`.
    """
    found = await occupant(backend, final)
    if found.kind not in ("ours", "orbax"):
        return
    if replace:
        await refuse_if_written(backend, final, force=force)
    else:
        raise CommitConflictError(
            "a checkpoint exists here already; pass overwrite=True (force=True) to replace it",
            key=final,
            root=backend.root,
        )


async def _write_items(area: WriteArea, contents: Contents) -> None:
    async def one(name: str, item: Item) -> None:
        scope = area.child(name) if name else area
        record = await item.staged.write(scope)
        await item.staged.finish(scope, [record])

    try:
        await run_all(one(name, item) for name, item in contents.items.items())
    finally:
        await discard(contents)


async def discard(contents: Contents) -> None:
    """Removes what items hold outside of what was written, to the end if cancelled meanwhile."""

    async def each() -> None:
        for item in contents.items.values():
            await item.staged.discard()

    await carried_through(asyncio.ensure_future(each()))


async def write_step_documents(
    area: WriteArea,
    final: str,
    handlers: Any,
    custom_metadata: Mapping[str, Any] | None,
    *,
    marker: bool,
    started: int,
) -> None:
    """Writes what describes the whole checkpoint.

    Args:
        area: The attempt.
        final: The prefix the checkpoint will be known by.
        handlers: The handler string of each item by name, or of the one flat item.
        custom_metadata: The caller's JSON object.
        marker: See `Contents`.
        started: When the save began, in nanoseconds since the epoch.
    """
    step = StepMetadata(
        item_handlers=handlers,
        init_timestamp_nsecs=started,
        commit_timestamp_nsecs=time.time_ns(),
        custom_metadata=dict(custom_metadata or {}),
    )
    await area.put(STEP_METADATA_FILE, step.to_bytes())
    if marker:
        await area.put(ORBAX_MARKER, b"")
    # Orbax decides by this file on stores where it cannot rename; its text is not read.
    await area.put(ORBAX_COMMIT, f"Checkpoint {final} was committed by holdfast\n".encode())
