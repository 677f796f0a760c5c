"""Checkpoints that were removed and may come back.

A ticket, the small object `<prefix>/.<name>.trashed`, is put before a checkpoint is
un-committed and deleted after it has come back or its data is gone; its age is the age of
the entry. The data is the folder `<prefix>/<name>` where folders move; elsewhere it stays in
the final, whose record says so. A ticket that has neither means nothing.
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

from holdfast_metadata import MetadataError, TrashTicket
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity, layout
from holdfast_storage.commit.occupancy import occupant
from holdfast_storage.commit.opening import require_whole_at
from holdfast_storage.commit.pace import Pace
from holdfast_storage.commit.record import read_record
from holdfast_storage.commit.strategy import CommitStrategy, Removal, SweepReport
from holdfast_storage.commit.sweep import StoreClock
from holdfast_storage.values import IfAbsent, ObjectInfo

PATIENCE_S = 2.0
_AGAIN = re.compile(r"\.[0-9a-f]{8}\Z")  # what `Trash._names` adds
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """One checkpoint in the trash.

    Attributes:
        final: Where it was, and goes when it is restored.
        attempt: Its attempt; None if Orbax wrote it.
        prefix: Where its data is.
        moved: Whether `prefix` is a folder of the trash.
        trashed: When it got there, by the store's clock, in seconds since the epoch.
        ticket: The key of its ticket.
    """

    final: str
    attempt: str | None
    prefix: str
    moved: bool
    trashed: float
    ticket: str


class Trash:
    """The trash of one folder of checkpoints.

    Args:
        backend: The store; keys of checkpoints are relative to its root.
        prefix: Where the trash is, below that root.
        pace: How fast data is deleted.
    """

    def __init__(self, backend: StorageBackend, prefix: str, pace: Pace | None = None) -> None:
        self._backend = backend
        self.prefix = keys.check_key(prefix, root=backend.root)
        self._pace = pace or Pace()

    async def _strategy(self) -> CommitStrategy:
        strategy = await self._backend.commit_strategy()
        strategy.pace = self._pace
        return strategy

    async def takes_orbax(self) -> bool:
        """Whether what Orbax wrote can go here: where folders move."""
        return (await self._strategy()).moves_to_trash

    # --- into the trash ------------------------------------------------------------------

    async def put(self, final: str, *, expected: str | None) -> None:
        """Un-commits a checkpoint and keeps it here.

        Args:
            final: Where it is.
            expected: Its attempt; None for one of Orbax's.

        Raises:
            CheckpointNotFoundError: It is not committed any more.
            CommitConflictError: Another attempt is committed there by now; it stays.
            UnsupportedOperationError: Orbax wrote it and the store cannot move it.
        """
        mark = identity.new_mark(expected or layout.new_attempt_id(), "trash")
        ticket = TrashTicket(final, expected, mark)
        strategy = await self._strategy()
        async for name in self._names(keys.leaf(final)):
            key, aside = self._ticket(name), keys.join(self.prefix, name)
            if (await occupant(self._backend, aside)).kind != "absent":
                continue  # something without a ticket is called so, and nobody's to touch
            try:
                await self._backend.put(key, ticket.to_bytes(), condition=IfAbsent())
            except errors.ObjectExistsError:
                continue
            try:
                await strategy.to_trash(final, expected=expected, aside=aside)
            except errors.ObjectExistsError:
                await self._withdraw(key)
                continue
            except (
                errors.CheckpointNotFoundError,
                errors.CommitConflictError,
                errors.UnsupportedOperationError,
            ):
                await self._withdraw(key)
                raise
            await self._keep_ticket(key, ticket)
            return

    async def _names(self, leaf: str) -> AsyncIterator[str]:
        """A name for an entry; others if it is taken."""
        yield leaf
        while True:
            yield f"{leaf}.{uuid.uuid4().hex[:8]}"

    async def _keep_ticket(self, key: str, ticket: TrashTicket) -> None:
        """A sweep may have taken the ticket of one that slept for as meaning nothing."""
        try:
            await self._backend.put(key, ticket.to_bytes(), condition=IfAbsent())
        except errors.ObjectExistsError:
            return

    async def _withdraw(self, key: str) -> None:
        """Takes back a ticket that means nothing now; a store that takes long delays nothing."""
        work = asyncio.ensure_future(self._backend.delete(key))
        done, _ = await asyncio.wait([work], timeout=PATIENCE_S)
        if done:
            await work
        else:
            work.add_done_callback(_told)

    def _ticket(self, name: str) -> str:
        return keys.join(self.prefix, f".{name}.trashed")

    # --- what is in it -------------------------------------------------------------------

    async def tickets(self) -> list[ObjectInfo]:
        """The tickets by age, oldest first: one listing. Some may mean nothing."""
        listing = await self._backend.children(self.prefix)
        found = [info for info in listing.objects if _name_in(keys.leaf(info.key)) is not None]
        return sorted(found, key=lambda info: info.modified)

    async def entries(self, *, until: float = math.inf) -> list[TrashEntry]:
        """What is in the trash, oldest first.

        Of two tickets of one checkpoint the younger counts: the other is of an earlier time.

        Args:
            until: Only what got there by then, by the store's clock, in seconds since the
                epoch. Tickets of others are not read.
        """
        tickets = await self.tickets()
        asked = {_final_in(info) for info in tickets if info.modified <= until}
        found = [await self.find(info) for info in tickets if _final_in(info) in asked]
        youngest = {entry.prefix: entry for entry in found if entry is not None}
        kept = [entry for entry in youngest.values() if entry.trashed <= until]
        return sorted(kept, key=lambda entry: entry.trashed)

    async def find(self, info: ObjectInfo) -> TrashEntry | None:
        """What a ticket names; None if that is not in the trash (any more, or yet)."""
        ticket = await self._read(info)
        if ticket is None:
            return None
        folder = keys.join(self.prefix, str(_name_in(keys.leaf(info.key))))
        where = (ticket.final, ticket.attempt)
        if await self._holds(folder, ticket):
            return TrashEntry(*where, folder, True, info.modified, info.key)
        if ticket.attempt is not None:
            record = (await read_record(self._backend, ticket.final)).record
            kept = record.in_trash(ticket.attempt) if record is not None else None
            if kept is not None:
                prefix = keys.join(ticket.final, kept.data)
                return TrashEntry(*where, prefix, False, info.modified, info.key)
        return None

    async def _holds(self, folder: str, ticket: TrashTicket) -> bool:
        if ticket.attempt is not None:
            return (await read_record(self._backend, folder)).attempt == ticket.attempt
        return (await occupant(self._backend, folder)).kind == "orbax"

    async def _read(self, info: ObjectInfo) -> TrashTicket | None:
        try:
            return TrashTicket.from_bytes(await self._backend.get(info.key), source=info.key)
        except errors.ObjectNotFoundError:
            return None
        except MetadataError as error:
            _log.warning("an entry of the trash is left alone: %s", error)
            return None

    # --- out of it -----------------------------------------------------------------------

    async def restore(self, entry: TrashEntry) -> None:
        """Commits a checkpoint again where it was, as it was; it replaces nothing.

        Raises:
            CommitConflictError: A checkpoint is there by now; both stay as they are.
            DestinationOccupiedError: Something else is in the way.
            CheckpointNotFoundError: It is not in the trash any more.
            DamagedCheckpointError: Files of it are missing; it stays where it is.
        """
        await self._require_free(entry.final)
        if entry.attempt is not None:
            await require_whole_at(self._backend, entry.final, entry.prefix, entry.attempt)
        strategy = await self._strategy()
        aside = entry.prefix if entry.moved else None
        await strategy.from_trash(entry.final, attempt=entry.attempt, aside=aside)
        await self._withdraw(entry.ticket)

    async def _require_free(self, final: str) -> None:
        found = await occupant(self._backend, final)
        where = {"key": final, "root": self._backend.root}
        if found.kind in ("ours", "orbax"):
            raise errors.CommitConflictError("a checkpoint is here by now", **where)
        if found.kind == "foreign":
            raise errors.DestinationOccupiedError(
                f"something that is no checkpoint is in the way ({found.detail})", **where
            )

    async def empty(self, entry: TrashEntry) -> Removal:
        """Gives up one entry, which cannot come back then.

        Returns:
            What deletes its data, then its ticket.

        Raises:
            CheckpointNotFoundError: It is not in the trash any more.
            CommitConflictError: Something else is there.
        """
        strategy = await self._strategy()
        if not entry.moved:
            remove = await strategy.empty_trash(entry.final, attempt=str(entry.attempt))
        elif entry.attempt is not None:
            remove = await strategy.uncommit(entry.prefix, expected=entry.attempt)
        else:
            remove = await strategy.uncommit_orbax(entry.prefix)

        async def remove_all() -> None:
            await remove()
            await self._backend.delete(entry.ticket)

        return remove_all

    async def sweep(self, *, older_than: float) -> SweepReport:
        """Finishes what a dead process began here: a removal, or the way into the trash.

        Touches no entry, and no ticket of a process that may be alive, if it is younger
        than `older_than` seconds by the store's clock.
        """
        listing = await self._backend.children(self.prefix)
        if not listing.objects and not listing.prefixes:
            return SweepReport()  # nobody ever used it
        report = await (await self._strategy()).sweep(self.prefix, older_than=older_than)
        removed, spared = list(report.removed), list(report.spared)
        clock = StoreClock(self._backend, self.prefix)
        for info in await self.tickets():
            ticket = await self._read(info)
            if ticket is None or await self.find(info) is not None:
                continue
            if not identity.is_gone(ticket.by) and await clock.age(info.modified) < older_than:
                spared.append((info.key, "its writer may be alive"))
                continue
            if await self._settle(info, ticket):
                removed.append(info.key)
        return SweepReport(tuple(removed), tuple(spared))

    async def _settle(self, info: ObjectInfo, ticket: TrashTicket) -> bool:
        """Puts back what was moved here by mistake; True if the ticket is gone then."""
        folder = keys.join(self.prefix, str(_name_in(keys.leaf(info.key))))
        found = await occupant(self._backend, folder)
        if found.kind != "absent":
            try:
                await self._backend.rename_prefix(folder, ticket.final)
            except errors.ObjectExistsError:
                if found.kind != "ours":
                    return False
                # Its place is taken: it is in the trash then, as what was replaced.
                kept = TrashTicket(ticket.final, found.stored.attempt, ticket.by)
                await self._backend.put(info.key, kept.to_bytes())
                return False
        await self._backend.delete(info.key)
        return True


def _told(work: asyncio.Future[None]) -> None:
    if not work.cancelled() and work.exception() is not None:
        _log.debug("a ticket stays for the next sweep: %s", work.exception())


def _final_in(info: ObjectInfo) -> str:
    """What all tickets of one checkpoint have in common; perhaps some of others, too."""
    name = str(_name_in(keys.leaf(info.key)))
    return _AGAIN.sub("", name)


def _name_in(leaf: str) -> str | None:
    """The name of the entry of a ticket, or None if it is none."""
    if not leaf.startswith(".") or not leaf.endswith(".trashed"):
        return None
    return leaf[1 : -len(".trashed")]
