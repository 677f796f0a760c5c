"""Removing what dead writers left: fence first, then delete, data first and marks last.

Only folders that carry holdfast's mark are touched, and of those only the ones whose
writer is provably gone, or silent for longer than a given age by the store's own clock.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence

from holdfast_metadata import (
    ATTEMPT_FILE,
    COMMIT_FILE,
    MANIFEST_FILE,
    AttemptMark,
    CommitRecord,
    Manifest,
    MetadataError,
)
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity, layout, orbax, partial
from holdfast_storage.commit.pace import Pace
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.commit.strategy import SweepReport
from holdfast_storage.values import IfAbsent, Listing, Names

_log = logging.getLogger(__name__)
_LOOKED_AT_ONCE = 64
Fence = Callable[[str, str], Awaitable[bool]]


async def _nothing(final: str) -> None:
    """Where nobody said how the removal of a checkpoint of Orbax's is finished."""


class StoreClock:
    """The store's own time: asked once, by writing a small object and reading its age."""

    def __init__(self, backend: StorageBackend, parent: str) -> None:
        self._backend = backend
        self._key = keys.join(parent, f"{layout.CLOCK_PREFIX}{uuid.uuid4().hex}")
        self._now: float | None = None

    async def age(self, modified: float) -> float:
        """Seconds since `modified`."""
        if self._now is None:
            try:
                await self._backend.put(self._key, b"", durable=False, parents=False)
                self._now = (await self._backend.stat(self._key)).modified
            finally:
                await self._backend.delete(self._key)
        return self._now - modified


class Sweeper:
    """One sweep of attempts that lie inside their finals.

    Args:
        backend: The store.
        fence: Makes an attempt impossible to commit; False if it is committed already.
        grace_s: How long replaced data stays.

    Attributes:
        pace: How fast data is deleted.
        finish_orbax: Finishes the removal of a checkpoint of Orbax's in a final.
    """

    def __init__(self, backend: StorageBackend, fence: Fence, grace_s: float) -> None:
        self.pace = Pace()
        self.finish_orbax: Callable[[str], Awaitable[None]] = _nothing
        self._backend = backend
        self._fence = fence
        self._grace_s = grace_s
        self._removed: list[str] = []
        self._spared: list[tuple[str, str]] = []

    async def run(self, parent: str, *, older_than: float) -> SweepReport:
        """Sweeps one level below `parent`."""
        self._clock = StoreClock(self._backend, parent)
        self._older_than = older_than
        listing = await self._backend.children(parent)
        finals = [prefix for prefix in listing.prefixes if not keys.leaf(prefix).startswith(".")]
        idle = await self._idle(finals)
        for prefix in listing.prefixes:
            if prefix in idle:
                continue
            try:
                await self._sweep_prefix(prefix)
            except errors.StorageError as error:
                self._spared.append((prefix, str(error)))
        await self._sweep_clocks(listing)
        await self._backend.abort_uploads(parent, older_than=older_than)
        return SweepReport(tuple(self._removed), tuple(self._spared))

    async def _idle(self, finals: Sequence[str]) -> set[str]:
        """Those of which a look at many at once says that nothing dead lies in them: all but few.

        The others are looked at again, one by one, before anything is done to them.
        """
        names = await self._backend.names_in(finals)
        limit = asyncio.Semaphore(_LOOKED_AT_ONCE)

        async def look(final: str) -> bool:
            async with limit:
                return final in names and await self._is_idle(final, names[final])

        answers = await asyncio.gather(*map(look, finals))
        return {final for final, idle in zip(finals, answers, strict=True) if idle}

    async def _is_idle(self, final: str, names: Names) -> bool:
        inner = {n for n in names.prefixes if n.startswith(layout.INNER_PREFIX)}
        if not inner and (COMMIT_FILE not in names.objects or self._is_published(names)):
            return True
        try:
            record = (await read_record(self._backend, final)).record
        except errors.StorageError:
            return False  # told of where it is swept
        if record is None or record.orbax_until_ns is not None:
            return False
        if MANIFEST_FILE in names.objects and _replaces_root(record):
            return False
        kept = {one.attempt for one in record.trashed}
        if record.state != "retired":
            kept.add(str(record.attempt))
        return {name.removeprefix(layout.INNER_PREFIX) for name in inner} <= kept

    def _is_published(self, names: Names) -> bool:
        """Whether the names alone say that a final is a checkpoint and nothing else."""
        return False

    async def _sweep_clocks(self, listing: Listing) -> None:
        """Removes what a process left that died while it asked the store something."""
        for info in listing.objects:
            if not keys.leaf(info.key).startswith(layout.PASSING_PREFIXES) or info.size:
                continue
            if await self._clock.age(info.modified) >= self._older_than:
                await self._backend.delete(info.key)
                self._removed.append(info.key)

    async def _sweep_prefix(self, prefix: str) -> None:
        leaf = layout.parse_partial(keys.leaf(prefix))
        if leaf is not None:
            await self._sweep_partial(prefix, keys.join(keys.parent(prefix), leaf))
        elif not keys.leaf(prefix).startswith("."):
            await self._sweep_final(prefix)

    async def _sweep_partial(self, folder: str, final: str) -> None:
        """Gives up parts that nobody touched for a week, and clears away those that are merged."""
        ttl = await partial.ttl_of(self._backend, folder)
        if ttl is None:
            self._spared.append((folder, "it carries no mark of holdfast"))
            return
        session = await partial.read_session(self._backend, final)
        ended = session.last > 0 and session.last == session.began
        limit = self._older_than if ended else max(self._older_than, ttl)
        found = [info.modified async for info in self._backend.walk(folder)]
        if found and await self._clock.age(max(found)) < limit:
            self._spared.append((folder, "parts of a checkpoint that is not finalized yet"))
            return
        if ended:
            await partial.clear_session(self._backend, final)
        else:
            await partial.give_up_session(self._backend, session)
        if len([info async for info in self._backend.walk(folder)]) < len(found):
            self._removed.append(folder)

    async def _sweep_final(self, final: str) -> None:
        listing = await self._backend.children(final)
        # Before what lies in folders: by those the next sweep sees that there is something.
        if any(keys.leaf(info.key) == COMMIT_FILE for info in listing.objects):
            await self._sweep_root_data(final)
        for inner in listing.prefixes:
            name = keys.leaf(inner)
            if name.startswith(layout.INNER_PREFIX):
                await self._sweep_inner(final, inner, name.removeprefix(layout.INNER_PREFIX))

    async def _sweep_root_data(self, final: str) -> None:
        stored = await read_record(self._backend, final)
        if stored.record is not None and stored.record.orbax_until_ns is not None:
            await self.finish_orbax(final)
            self._removed.append(final)
            return
        if not await _has_replaced_root_data(self._backend, final, stored):
            return
        info = stored.info if stored.committed else None
        if info is not None and await self._clock.age(info.modified) < self._grace_s:
            self._spared.append((final, "replaced a short while ago; readers may be at it"))
            return
        await delete_root_data(self._backend, final)
        self._removed.append(final)

    async def _sweep_inner(self, final: str, inner: str, attempt: str) -> None:
        stored = await read_record(self._backend, final)
        named = stored.record is not None and stored.record.attempt == attempt
        if stored.in_trash(attempt):
            return  # it may come back
        if named and stored.record is not None and stored.record.state != "retired":
            return
        if named:  # a removal that was cut short
            await self._backend.delete(keys.join(final, layout.ADVISORY_FILE))
            await self._delete(inner)
        elif attempt in stored.dead:
            await self._sweep_replaced(stored, inner, attempt)
        elif await self._is_dead(inner) and await self._fence(final, attempt):
            await self._delete(inner)

    async def _sweep_replaced(self, stored: StoredRecord, inner: str, attempt: str) -> None:
        assert stored.info is not None
        youngest = stored.dead[-1] == attempt and stored.committed
        if youngest and await self._clock.age(stored.info.modified) < self._grace_s:
            self._spared.append((inner, "replaced a short while ago; readers may be at it"))
            return
        await self._delete(inner)

    async def _is_dead(self, staging: str) -> bool:
        """Whether the writer of a marked staging is gone or silent."""
        key = keys.join(staging, ATTEMPT_FILE)
        try:
            mark = AttemptMark.from_bytes(await self._backend.get(key))
            modified = (await self._backend.stat(key)).modified
        except errors.ObjectNotFoundError:
            return await self._is_our_stub(staging)
        except MetadataError as error:
            self._spared.append((staging, f"its mark cannot be read: {error}"))
            return False
        if identity.is_gone(mark):
            return True
        age = await self._clock.age(modified)
        if age >= self._older_than:
            return True
        self._spared.append((staging, f"its writer ({mark.host}, pid {mark.pid}) may be alive"))
        return False

    async def _is_our_stub(self, staging: str) -> bool:
        """A folder without a mark is ours only if its own record names it."""
        names = [keys.relative(i.key, staging) async for i in self._backend.walk(staging)]
        if names and not set(names) <= set(layout.OURS):
            self._spared.append((staging, "it carries no mark of holdfast"))
            return False
        record = (await read_record(self._backend, staging)).record
        return isinstance(record, CommitRecord) and str(record.attempt) in keys.leaf(staging)

    async def _delete(self, prefix: str) -> None:
        await self.pace.delete_prefix(self._backend, prefix)
        self._removed.append(prefix)


class HiddenSweeper(Sweeper):
    """Sweeps hidden siblings as well, for stores that rename."""

    def _is_published(self, names: Names) -> bool:
        """A rename brings record and manifest, and takes both away.

        Where a record decides, data that it retires lies inside the final and goes last.
        """
        return {COMMIT_FILE, MANIFEST_FILE} <= names.objects

    async def _sweep_prefix(self, prefix: str) -> None:
        found = layout.parse_hidden(keys.leaf(prefix))
        if found is None:
            await super()._sweep_prefix(prefix)
        elif found.kind == "attempt":
            await self._sweep_attempt(prefix, found)
        elif found.kind == "retired":
            await self._sweep_retired(prefix, found)
        elif found.kind == "orbax":
            final = keys.join(keys.parent(prefix), found.leaf)
            if await orbax.settle_moved(self._backend, final, prefix):
                await self._delete(prefix)
        elif found.kind == "leaving":
            self._spared.append((prefix, "its removal is not decided; the run's writer settles it"))
        elif found.kind == "displaced" or await self._is_replaced(prefix, found):
            await self._sweep_displaced(prefix)
        else:
            await self._delete(prefix)

    async def _sweep_attempt(self, prefix: str, found: layout.HiddenName) -> None:
        final = keys.join(keys.parent(prefix), found.leaf)
        inside = await read_record(self._backend, prefix)
        held = inside.record is not None and bool(inside.record.trashed)
        if held or (inside.committed and inside.attempt != found.attempt):
            await self._sweep_exchanged(prefix, final, found.attempt, inside)
        elif await self._is_dead(prefix):
            dead = await fence_by_move(self._backend, prefix, final, found.attempt)
            if dead is not None:
                await self._delete(dead)

    async def _sweep_exchanged(
        self, prefix: str, final: str, attempt: str, inside: StoredRecord
    ) -> None:
        """A writer died between its exchange and the look at what it displaced."""
        there = await read_record(self._backend, final)
        if there.attempt == attempt and there.record is not None:
            if not await self._is_dead(final):
                return  # it is about to look
            held = inside.record is not None and bool(inside.record.trashed)
            if held or there.record.extra.get(layout.EXPECTS, inside.attempt) != inside.attempt:
                _log.warning("%s was replaced by mistake; putting it back", final)
                await self._backend.exchange_prefix(prefix, final)
                return  # the next sweep finds the dead attempt under its own name
        if inside.record is not None and inside.record.trashed:
            await self._backend.rename_prefix(prefix, final)  # what is in the trash stays
            return
        aside = layout.hidden(final, "displaced", attempt)
        await self._backend.rename_prefix(prefix, aside)
        await self._sweep_displaced(aside)

    async def _sweep_retired(self, prefix: str, found: layout.HiddenName) -> None:
        """Finishes a removal; puts back what a retiring process moved out by mistake."""
        final = keys.join(keys.parent(prefix), found.leaf)
        if await partial.settle_moved(self._backend, final, prefix):
            return
        if not await self._is_replaced(prefix, found):
            await self._delete(prefix)
            return
        try:
            await self._backend.rename_prefix(prefix, final)
        except errors.ObjectExistsError:
            await self._sweep_displaced(prefix)  # a newer one stands there by now

    async def _is_replaced(self, prefix: str, found: layout.HiddenName) -> bool:
        """Whether a retiring process moved out something newer than it meant to."""
        inside = await read_record(self._backend, prefix)
        return inside.committed and inside.attempt != found.attempt

    async def _sweep_displaced(self, prefix: str) -> None:
        if await _past_grace(self._backend, prefix, self._clock, self._grace_s):
            await self._delete(prefix)
        else:
            self._spared.append((prefix, "replaced a short while ago; readers may be at it"))


class DecidedSweeper(HiddenSweeper):
    """Sweeps hidden siblings where a decision, not a move, settles what becomes of them.

    Args:
        backend: The store.
        fence: For attempts inside their final.
        grace_s: How long replaced data stays.
        fence_hidden: For attempts in siblings.
        settle: Publishes an attempt that is decided, and says what became of it:
            `published`, `dead` or `open`.
    """

    def __init__(
        self,
        backend: StorageBackend,
        fence: Fence,
        grace_s: float,
        fence_hidden: Fence,
        settle: Callable[[str, str], Awaitable[str]],
    ) -> None:
        super().__init__(backend, fence, grace_s)
        self._fence_hidden = fence_hidden
        self._settle = settle

    def _is_published(self, names: Names) -> bool:
        """Nothing is moved away here: a record retires what lies beside it."""
        return False

    async def _sweep_attempt(self, prefix: str, found: layout.HiddenName) -> None:
        final = keys.join(keys.parent(prefix), found.leaf)
        outcome = await self._settle(final, found.attempt)
        if outcome == "open" and await self._is_dead(prefix):
            outcome = "dead" if await self._fence_hidden(final, found.attempt) else "published"
        if outcome == "dead":
            await self._delete(prefix)


async def fence_by_move(
    backend: StorageBackend, staging: str, final: str, attempt: str
) -> str | None:
    """Makes a hidden attempt impossible to commit by moving it away.

    Returns:
        Where its data is now, to be deleted; None if there is nothing of it to delete:
        it was committed or fenced before, or an exchange came first and what was moved is
        the checkpoint that it displaced.
    """
    dead = layout.hidden(final, "dead", attempt, unique=True)
    try:
        await backend.rename_prefix(staging, dead)
    except errors.ObjectNotFoundError:
        return None
    inside = await read_record(backend, dead)
    return None if inside.committed and inside.attempt != attempt else dead


async def _past_grace(
    backend: StorageBackend, prefix: str, clock: StoreClock, grace_s: float
) -> bool:
    key = keys.join(prefix, layout.DISPLACED_FILE)
    try:
        modified = (await backend.stat(key)).modified
    except errors.ObjectNotFoundError:
        # Whoever displaced it died before saying so: the grace period starts now.
        await backend.put(key, b"", condition=IfAbsent(), parents=False)
        return grace_s <= 0
    return await clock.age(modified) >= grace_s


async def reap_displaced(backend: StorageBackend, final: str, *, grace_s: float) -> None:
    """Removes a final's displaced folders, sparing the youngest for `grace_s`."""
    parent = keys.parent(final)
    clock = StoreClock(backend, parent)
    aged = []
    for prefix in (await backend.children(parent)).prefixes:
        found = layout.parse_hidden(keys.leaf(prefix))
        if found is None or found.kind != "displaced" or found.leaf != keys.leaf(final):
            continue
        try:
            info = await backend.stat(keys.join(prefix, layout.DISPLACED_FILE))
        except errors.ObjectNotFoundError:
            continue  # the sweep starts its grace period
        aged.append((info.modified, prefix))
    for index, (modified, prefix) in enumerate(sorted(aged, reverse=True)):
        if index > 0 or await clock.age(modified) >= grace_s:
            await backend.delete_prefix(prefix)


async def reap_inner(
    backend: StorageBackend, final: str, stored: StoredRecord, *, grace_s: float
) -> None:
    """Removes data of fenced and replaced attempts inside a final, as `reap_displaced`."""
    assert stored.info is not None
    there = {keys.leaf(p) for p in (await backend.children(final)).prefixes}
    left = [a for a in stored.dead if layout.INNER_PREFIX + a in there and not stored.in_trash(a)]
    root_data = await _has_replaced_root_data(backend, final, stored)
    if (left or root_data) and stored.committed:
        age = await StoreClock(backend, keys.parent(final)).age(stored.info.modified)
        if age < grace_s:
            if left:
                left.pop()
            else:
                root_data = False
    for attempt in left:
        await backend.delete_prefix(layout.inner(final, attempt))
    if root_data:
        await delete_root_data(backend, final)


async def _has_replaced_root_data(
    backend: StorageBackend, final: str, stored: StoredRecord
) -> bool:
    """Whether files lie in the final itself that its record does not point at.

    So it is where a folder could not be exchanged, or came from a store that renames.
    """
    if stored.record is None or not _replaces_root(stored.record):
        return False
    try:
        await backend.stat(keys.join(final, MANIFEST_FILE))
    except errors.ObjectNotFoundError:
        return False
    return True


def _replaces_root(record: CommitRecord) -> bool:
    """Whether data in the final itself is not what its record points at, now or in the trash."""
    if record.state in ("none", "trashed"):
        return False  # perhaps half a copy, or what may come back from the trash
    if record.committed and not record.data:
        return False
    return all(kept.data for kept in record.trashed)


async def delete_replaced_root(backend: StorageBackend, final: str) -> None:
    """Deletes the data in the final itself, if its record keeps it in no way."""
    if await _has_replaced_root_data(backend, final, await read_record(backend, final)):
        await delete_root_data(backend, final)


async def delete_root_data(backend: StorageBackend, final: str) -> None:
    """Deletes the files that the manifest in the final itself lists; the manifest goes last.

    The caller knows that the record does not point there.
    """
    try:
        data = await backend.get(keys.join(final, MANIFEST_FILE))
    except errors.ObjectNotFoundError:
        return
    try:
        paths = Manifest.from_bytes(data).by_path
    except MetadataError as error:
        _log.warning("leaving replaced data in %s: %s", final, error)
        return
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    for path in paths:
        await backend.delete(keys.join(final, path))
    for folder in sorted(folders):
        await backend.delete_prefix(keys.join(final, folder))  # what is left of it: nothing
    for name in (ATTEMPT_FILE, MANIFEST_FILE):
        await backend.delete(keys.join(final, name))
