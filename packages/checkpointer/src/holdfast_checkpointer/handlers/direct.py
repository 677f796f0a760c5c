"""The methods of Orbax's protocol on holdfast's own handlers: a plain folder, no commit.

Between `save` and `finalize` an item's folder holds a file that says so, unless nothing is left
to be done. So a restore by anyone tells the difference, and a process that died in between has
not left what looks like an item.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, TypeVar

from holdfast_checkpointer import options
from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.desk import attended
from holdfast_checkpointer.engine.layout import StoredCheckpoint, describe_area
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import Contents, start_save
from holdfast_checkpointer.errors import NotFinalizedError
from holdfast_checkpointer.handlers.base import CheckpointHandler, Item, ItemRecord
from holdfast_checkpointer.handlers.direct_together import save_together
from holdfast_checkpointer.handlers.foreign.folders import UNFINALIZED
from holdfast_checkpointer.handlers.foreign.inner import InnerItems
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context
from holdfast_metadata import TREE_FILE
from holdfast_metadata.orbax import ITEM_METADATA_FILE, STEP_METADATA_FILE
from holdfast_storage import (
    CommitConflictError,
    DestinationOccupiedError,
    DirectArea,
    InvalidURLError,
    ObjectNotFoundError,
    ReadArea,
    StorageBackend,
    keys,
    resolve_url,
)
from holdfast_storage.commit import open_plain, read_record, reading

Path = str | PathLike[str]
T = TypeVar("T")
_TREE_FILES = {TREE_FILE, ITEM_METADATA_FILE, UNFINALIZED, "manifest.ocdbt", "ocdbt.process_0"}
# How far above a folder a checkpoint is looked for: an item, or a part of one, lies in it.
_LEVELS = 3


@dataclass
class _Unfinished:
    """A save that waits for `finalize`.

    Attributes:
        backend: The storage.
        key: The folder.
        items: What is saved there, by folder below it.
        context: Options.
        directory: The folder as the caller named it.
        several: Whether several processes save; then the save finishes the items.
        call: Which call of this process it is, if several save.
        around: The user's item that it is a part of, in a job of several, and the way from there.
        records: What was written of each item that is to be finished.
        response: The save.
    """

    backend: StorageBackend
    key: str
    items: Mapping[str, Item]
    context: Context
    directory: Path
    several: bool
    call: Call | None
    around: tuple[InnerItems, str] | None
    records: dict[str, ItemRecord] = field(default_factory=dict)
    response: AsyncResponse[None] | None = None

    @property
    def area(self) -> DirectArea:
        """Where files are written."""
        return DirectArea(self.backend, self.key)

    @property
    def incomplete(self) -> list[str]:
        """The items that wait for `finalize`."""
        return [name for name, item in self.items.items() if not item.staged.complete]


_lock = threading.Lock()
_handed_on: set[str] = set()


def _unfinished(handler: CheckpointHandler) -> dict[str, _Unfinished]:
    """By folder. A subclass need not call our `__init__`, so it is made when first needed."""
    with _lock:
        found: dict[str, _Unfinished] = handler.__dict__.setdefault("_holdfast_unfinished", {})
        return found


def start(
    handler: CheckpointHandler,
    directory: Path,
    positional: Sequence[Any],
    keyword: Mapping[str, Any],
) -> AsyncResponse[None]:
    """Takes the snapshot and writes in the background; see `CheckpointHandler.save`."""
    saving = _begin(handler, directory, positional, keyword)
    waiting, label = _unfinished(handler), saving.area.label

    async def write() -> None:
        try:
            await _save(saving)
        except BaseException:
            if waiting.get(label) is saving:
                del waiting[label]
            raise

    if saving.incomplete:
        waiting[label] = saving
    saving.response = start_save(
        Contents(saving.items),
        write(),
        what=f"the save to {directory}",
        deadline=saving.context.asynchronous.timeout_secs,
    )
    return saving.response


def _begin(
    handler: CheckpointHandler,
    directory: Path,
    positional: Sequence[Any],
    keyword: Mapping[str, Any],
) -> _Unfinished:
    """Stages the items; in a job of several processes a failure is told to the others."""
    around = InnerItems.around(directory)

    def choose() -> Context:
        own = None if around else handler.taking_part
        current = options.current()
        return current if own is None else Context(current, multiprocessing=own)

    with contextlib.nullcontext() if around else call_of(choose) as call:
        chosen = choose()
        backend, key = chosen.locate(directory)
        args = handler.arguments(positional, keyword, save=True)
        items = handler.stage_all(args, chosen)
        several = not Membership.of(chosen.multiprocessing).alone
        saving = _Unfinished(backend, key, items, chosen, directory, several, call, around)
        before = _unfinished(handler).get(saving.area.label)
        if saving.incomplete and before is not None and not before.several:
            raise _occupied("a save that is not finalized", backend, key)
    return saving


async def _save(saving: _Unfinished) -> None:
    async def look() -> None:
        await _refuse_checkpoints(saving.directory, saving.context)
        for name, item in saving.items.items():
            await _refuse_taken(saving.backend, keys.join(saving.key, name), item)

    if saving.around is not None:
        await _write_inner(saving, *saving.around)
    elif saving.several:
        await save_together(
            *(saving.backend, saving.key, saving.items),
            context=saving.context,
            call=saving.call,
            look=look,
            unfinished=saving.incomplete,
        )
    else:
        await look()
        await run_all(_write(saving, name, item) for name, item in saving.items.items())
        await saving.area.sync()


async def _write_inner(saving: _Unfinished, inner: InnerItems, way: str) -> None:
    """Hands items to the attempt that they are a part of; this process's folder has the mark."""
    for name, item in saving.items.items():
        if inner.leads and not item.staged.complete:
            await (saving.area.child(name) if name else saving.area).put(UNFINALIZED, b"")
        await inner.write(keys.join(way, name), item.staged)


async def _write(saving: _Unfinished, name: str, item: Item) -> None:
    scope = saving.area.child(name) if name else saving.area
    if item.staged.complete:
        record = await item.staged.write(scope)
        await item.staged.finish(scope, [record])
        return
    await scope.put(UNFINALIZED, b"")
    with _in_hand(scope):
        saving.records[name] = await item.staged.write(scope)


@contextlib.contextmanager
def _in_hand(scope: DirectArea) -> Iterator[None]:
    """Lets a user's handler that is called for an item call ours for the same folder."""
    with _lock:
        _handed_on.add(scope.label)
    try:
        yield
    finally:
        with _lock:
            _handed_on.discard(scope.label)


async def _refuse_checkpoints(directory: Path, context: Context) -> None:
    """A folder in a checkpoint is never written to: its manifest would not list the files."""
    for backend, above, _ in _places(directory, context):
        if (await read_record(backend, above)).committed:
            raise CommitConflictError(
                "a checkpoint is here, which a handler's save would damage; use a checkpointer "
                "with force=True to replace it, or choose another folder",
                key=above,
                root=backend.root,
            )


async def _refuse_taken(backend: StorageBackend, key: str, item: Item) -> None:
    """One file may be put in place of another; a tree cannot be saved over a tree."""
    files = await open_plain(backend, key).files()
    taken = {STEP_METADATA_FILE} & files.keys()
    if not item.staged.complete:
        taken |= {name for name in files if _TREE_FILES.intersection(name.split("/"))}
        if DirectArea(backend, key).label in _handed_on:
            taken.discard(UNFINALIZED)  # it was put there for the same item
    if taken:
        raise _occupied(repr(min(taken)), backend, key)


def _occupied(found: str, backend: StorageBackend, key: str) -> DestinationOccupiedError:
    return DestinationOccupiedError(
        f"something was saved here before ({found}); choose an empty folder",
        key=key,
        root=backend.root,
    )


def finalize(handler: CheckpointHandler, directory: Path) -> None:
    """See `CheckpointHandler.finalize`."""
    chosen = options.current()
    backend, key = chosen.locate(directory)
    area = DirectArea(backend, key)
    saving = _unfinished(handler).get(area.label)
    if saving is not None and saving.response is not None:
        saving.response.result()

    around = InnerItems.around(directory)
    if saving is None and around is not None and around[0].holds(around[1]):
        return  # finalized before, or never to be: it is not here, but in the attempt

    async def finish() -> None:
        if saving is None:
            await _refuse_to_finalize_nothing(backend, key)
            return
        if saving.several:
            for name in saving.incomplete:
                await saving.area.delete(keys.join(name, UNFINALIZED))
            return
        for name, item in saving.items.items():
            if name not in saving.records:
                continue
            scope = saving.area.child(name) if name else saving.area
            await item.staged.finish(scope, [saving.records[name]])
            await scope.sync()
            await scope.delete(UNFINALIZED)
        await saving.area.sync()

    _run(finish(), f"finalizing {directory}", chosen)
    _unfinished(handler).pop(area.label, None)


async def _refuse_to_finalize_nothing(backend: StorageBackend, key: str) -> None:
    files = await open_plain(backend, key).files()
    unfinished = [name for name in files if keys.leaf(name) == UNFINALIZED]
    if unfinished:
        raise NotFinalizedError(
            f"{backend.root}/{key} was saved by another handler, or by a process that has ended: "
            "only the handler that saved can finalize. Remove the folder and save again"
        )
    if not files:
        raise ObjectNotFoundError(
            "finalize was called and nothing is saved here", key=key, root=backend.root
        )


def restore(
    handler: CheckpointHandler,
    directory: Path,
    positional: Sequence[Any],
    keyword: Mapping[str, Any],
) -> Any:
    """See `CheckpointHandler.restore`."""
    chosen = options.current()
    request = handler.prepare(handler.arguments(positional, keyword, save=False))

    async def body(stored: StoredCheckpoint) -> Any:
        for name in handler.reads(stored, request):
            await _refuse_unfinalized(stored.item_area(name))
        return await handler.fetch_all(stored, request, chosen)

    return _run(_read(directory, chosen, body), f"the restore from {directory}", chosen)


async def _refuse_unfinalized(area: ReadArea) -> None:
    if UNFINALIZED in await area.names():
        raise NotFinalizedError(
            f"{area.label} was saved and is not finalized: call finalize() with this folder on the "
            "handler that saved it"
        )


def metadata(handler: CheckpointHandler, directory: Path) -> Any:
    """See `CheckpointHandler.metadata`."""
    chosen = options.current()

    async def body(stored: StoredCheckpoint) -> Any:
        await _refuse_unfinalized(stored.area)
        return await handler.describe_directly(stored)

    return _run(_read(directory, chosen, body), f"the description of {directory}", chosen)


async def _read(
    directory: Path, context: Context, body: Callable[[StoredCheckpoint], Awaitable[T]]
) -> T:
    """Opens a folder: verified if it is a checkpoint or lies in one, else as it is."""
    backend, key = context.locate(directory)
    for above, final, below in _places(directory, context):
        if (await read_record(above, final)).committed:

            async def inside(area: ReadArea, below: str = below, final: str = final) -> T:
                scope = area.child(below) if below else area
                return await body(await describe_area(scope, final, ours=True))

            return await reading(above, final, inside)
    plain = open_plain(backend, key)
    if not await plain.names():
        raise ObjectNotFoundError("nothing is here", key=key, root=backend.root)
    return await body(await describe_area(plain, key, ours=False))


def _places(directory: Path, context: Context) -> list[tuple[StorageBackend, str, str]]:
    """A folder and those above it, each with the rest of the way down."""
    found = []
    place, below = resolve_url(directory), ""
    for _ in range(_LEVELS):
        try:
            above, last = place.split()
        except InvalidURLError:
            break
        backend, key = context.locate(place.url)
        found.append((backend, key, below))
        place, below = above, keys.join(last, below)
    return found


def _run(coroutine: Any, what: str, context: Context) -> Any:
    return attended(coroutine, what=what, deadline=context.asynchronous.timeout_secs)
