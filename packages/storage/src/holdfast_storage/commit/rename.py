"""Commit by one rename: for stores that move a folder atomically.

An attempt is written in a hidden sibling, `.<leaf>.attempt-<id>`, record included; the
rename onto the final, which replaces nothing, is the one decision. A replacement exchanges
the two folders, then looks at what it displaced. Fencing moves the sibling away, after
which neither can happen.

Where the final must stay in place (a tombstone's list of fenced attempts, or a file system
that cannot exchange), the attempt moves inside it and the record decides, as in
`PointerCommit`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE, CommitRecord, Manifest, Trashed
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import changes, guard, identity, layout, orbax
from holdfast_storage.commit.occupancy import occupant
from holdfast_storage.commit.pointer import PointerCommit
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.strategy import Removal, SweepReport, Transaction
from holdfast_storage.values import IfAbsent

_log = logging.getLogger(__name__)


class RenameCommit(PointerCommit):
    """The protocol for file systems; see `PointerCommit` for the arguments."""

    name = "rename"
    renames = True
    moves_to_trash = True

    def _staging(self, final: str, attempt: str) -> str:
        return layout.hidden(final, "attempt", attempt)

    async def _commit(self, txn: Transaction, manifest: Manifest, *, replace: bool) -> CommitRecord:
        stored = await read_record(self._backend, txn.final)
        if stored.attempt == txn.attempt and stored.record is not None:
            await self._look_at_displaced(txn)
            return stored.record
        await self._judge(stored, txn, replace=replace)
        if await self._is_inside(txn):
            return await self._decide(txn, manifest, replace=replace)
        record = await self._put_record(txn, self._new_record(txn, manifest))
        await self._put_manifest(txn.staging, manifest)
        await self._backend.sync_prefix(txn.staging)

        async def send() -> CommitRecord | None:
            return await self._move(txn, record, manifest, replace=replace)

        return await self._until_known(send, txn.final, attempt=txn.attempt)

    def _new_record(self, txn: Transaction, manifest: Manifest) -> CommitRecord:
        # Whoever finds an exchange that nobody looked at can tell whether it was right.
        expects = {layout.EXPECTS: txn.expects_attempt} if txn.expects_attempt else {}
        return dataclasses.replace(super()._new_record(txn, manifest), data="", extra=expects)

    async def _put_record(self, txn: Transaction, record: CommitRecord) -> CommitRecord:
        """Writes the staged record once; a repeated commit finds and keeps it."""
        key = keys.join(txn.staging, COMMIT_FILE)
        try:
            await self._backend.put(key, record.to_bytes(), condition=IfAbsent(), parents=False)
        except errors.ObjectExistsError:
            return CommitRecord.from_bytes(await self._backend.get(key))
        except errors.ObjectNotFoundError as error:
            if await self._is_mine(txn) or await self._is_inside(txn):
                return record
            raise self._swept(txn.staging, "its folder is gone") from error
        return record

    async def _move(
        self, txn: Transaction, record: CommitRecord, manifest: Manifest, *, replace: bool
    ) -> CommitRecord | None:
        """One try at the decision, after a read-back. None means: look again."""
        stored = await read_record(self._backend, txn.final)
        if stored.attempt == txn.attempt and stored.record is not None:
            await self._look_at_displaced(txn)
            return stored.record
        if stored.committed and await self._was_in_place(txn):
            # Another writer has displaced it since: by right, or to find out and put it back.
            await self._set_aside(txn)
            return record
        await self._judge(stored, txn, replace=replace)
        await guard.require()
        found = await occupant(self._backend, txn.final)
        await self._require_files(txn, txn.staging, manifest)
        if found.kind in ("ours", "orbax") and not replace:
            raise errors.CommitConflictError(
                "a checkpoint is here", key=txn.final, root=self._backend.root
            )
        try:
            if stored.record is not None and stored.record.trashed:
                return await self._move_inside(txn, manifest, replace=replace)
            if found.kind in ("ours", "orbax"):
                return await self._replace(txn, manifest)
            if stored.record is not None or found.kind == "uncommitted":
                return await self._move_inside(txn, manifest, replace=replace)
            await self._backend.rename_prefix(txn.staging, txn.final)
        except errors.ObjectExistsError as error:
            return await self._after_refusal(txn, error)
        except errors.ObjectNotFoundError as error:
            await self._after_missing(txn, error)
            return None
        return record

    async def _after_refusal(
        self, txn: Transaction, error: errors.ObjectExistsError
    ) -> CommitRecord | None:
        """The destination holds something: look again, unless it is no checkpoint."""
        found = await occupant(self._backend, txn.final)
        if found.kind in ("absent", "foreign") and found.stored.record is None:
            raise errors.DestinationOccupiedError(
                "an empty folder, or something that is no checkpoint, is in the way; move it away",
                key=txn.final,
                root=self._backend.root,
            ) from error
        return None

    async def _after_missing(self, txn: Transaction, error: errors.ObjectNotFoundError) -> None:
        """Source or destination went away: go on only if the staging is still there."""
        if await self._is_mine(txn) or await self._is_inside(txn):
            return
        try:
            await self._backend.stat(keys.join(txn.staging, ATTEMPT_FILE))
        except errors.ObjectNotFoundError:
            raise self._swept(txn.staging, "its folder was moved away") from error

    async def _replace(self, txn: Transaction, manifest: Manifest) -> CommitRecord | None:
        if not self._backend.capabilities.exchange_prefix:
            return await self._move_inside(txn, manifest, replace=True)
        try:
            await self._backend.exchange_prefix(txn.staging, txn.final)
        except errors.UnsupportedOperationError:
            return await self._move_inside(txn, manifest, replace=True)
        return None  # the read-back finds the record, then looks at what was displaced

    async def _look_at_displaced(self, txn: Transaction) -> None:
        """After an exchange: put back what was not to be replaced; set the rest aside."""
        try:
            displaced = await read_record(self._backend, txn.staging)
        except errors.RecordUnreadableError:
            displaced = StoredRecord()
        another = displaced.committed and displaced.attempt not in (
            txn.attempt,
            txn.expects_attempt,
        )
        if another or (displaced.record is not None and displaced.record.trashed):
            await self._put_back(txn)
            raise errors.CommitConflictError(
                f"{displaced.attempt or 'something'} came here meanwhile and stays",
                key=txn.final,
                root=self._backend.root,
            )
        await self._set_aside(txn)

    async def _was_in_place(self, txn: Transaction) -> bool:
        """Whether an exchange has put this attempt in the place of the one that it expects."""
        if txn.expects_attempt is None:
            return False
        displaced = await read_record(self._backend, txn.staging)
        return displaced.committed and displaced.attempt == txn.expects_attempt

    async def _set_aside(self, txn: Transaction) -> None:
        aside = layout.hidden(txn.final, "displaced", txn.attempt)
        try:
            await self._backend.rename_prefix(txn.staging, aside)
        except (errors.ObjectNotFoundError, errors.ObjectExistsError):
            return  # nothing was displaced, or it was set aside already
        await self._mark_displaced(aside)

    async def _put_back(self, txn: Transaction) -> None:
        """Gives the final back to what this attempt displaced by mistake."""
        try:
            await self._backend.exchange_prefix(txn.staging, txn.final)
        except errors.ObjectNotFoundError:  # this attempt was deleted meanwhile
            try:
                await self._backend.rename_prefix(txn.staging, txn.final)
            except errors.ObjectExistsError:
                _log.warning("%s was committed again; leaving %s", txn.final, txn.staging)
            return
        if (await read_record(self._backend, txn.staging)).attempt != txn.attempt:
            # A third writer replaced this attempt in between: its checkpoint stays.
            await self._backend.exchange_prefix(txn.staging, txn.final)

    async def _mark_displaced(self, aside: str) -> None:
        """Starts the grace period of replaced data, by the store's own clock."""
        try:
            await self._backend.put(
                keys.join(aside, layout.DISPLACED_FILE), b"", condition=IfAbsent(), parents=False
            )
        except errors.StorageError:
            _log.debug("could not mark %s as replaced", aside, exc_info=True)

    async def _move_inside(
        self, txn: Transaction, manifest: Manifest, *, replace: bool
    ) -> CommitRecord:
        replaced = await self._replaced_here(txn, replace=replace)
        await self._backend.rename_prefix(txn.staging, layout.inner(txn.final, txn.attempt))
        committed = await self._decide(txn, manifest, replace=replace)
        await self._remove_replaced(txn, replaced)
        return committed

    async def _is_inside(self, txn: Transaction) -> bool:
        try:
            inside = layout.inner(txn.final, txn.attempt)
            await self._backend.stat(keys.join(inside, ATTEMPT_FILE))
        except errors.ObjectNotFoundError:
            return False
        return True

    async def _is_mine(self, txn: Transaction) -> bool:
        return await self._is_committed(txn.final, txn.attempt)

    async def fence(self, final: str, attempt: str) -> bool:
        """See `CommitStrategy.fence`."""
        from holdfast_storage.commit.sweep import fence_by_move

        staging = self._staging(final, attempt)
        if (await read_record(self._backend, staging)).attempt not in (None, attempt):
            return False  # an exchange came first: what lies there is what it displaced
        if await fence_by_move(self._backend, staging, final, attempt) is not None:
            return True
        inside = layout.inner(final, attempt)
        if not (await self._backend.children(inside)).objects:
            return False
        return await self._fence(final, attempt)

    async def abort(self, txn: Transaction) -> None:
        """See `CommitStrategy.abort`."""
        from holdfast_storage.commit.sweep import fence_by_move

        if txn.attempt in self._undecided:
            self._undecided.discard(txn.attempt)
            await self._backend.delete_prefix(txn.staging)
            return
        if await self._is_mine(txn):
            return
        dead = await carry_through(
            fence_by_move(self._backend, txn.staging, txn.final, txn.attempt)
        )
        if dead is not None:
            await self._backend.delete_prefix(dead)
        elif await self._is_inside(txn):
            await super().abort(txn)

    async def uncommit(self, final: str, *, expected: str) -> Removal:
        """See `CommitStrategy.uncommit`."""
        stored = await read_record(self._backend, final)
        if _stays(stored):
            return await super().uncommit(final, expected=expected)
        aside = layout.hidden(final, "retired", expected, unique=True)

        async def move_out(to: str) -> None:
            await self._move_out(final, stored, to, expected)

        await carry_through(self._take_out(final, aside, expected, move_out))

        async def remove() -> None:
            await self.pace.delete_prefix(self._backend, aside)

        return remove

    async def uncommit_orbax(self, final: str) -> Removal:
        """See `CommitStrategy.uncommit_orbax`."""
        aside = layout.hidden(final, "orbax", layout.new_attempt_id(), unique=True)
        await carry_through(self._take_out_orbax(final, aside))

        async def remove() -> None:
            if await orbax.mark(self._backend, aside):
                await self.pace.delete_prefix(self._backend, aside)

        return remove

    async def to_trash(self, final: str, *, expected: str | None, aside: str) -> None:
        """See `CommitStrategy.to_trash`: the folder moves, unless it holds more than that."""
        await guard.require()
        if expected is None:
            await carry_through(
                self._to_trash(final, aside, orbax.move_out(self._backend, final, aside))
            )
            return
        stored = await read_record(self._backend, final)
        if _stays(stored):
            await super().to_trash(final, expected=expected, aside=aside)
        else:
            moving = self._move_out(final, stored, aside, expected)
            await carry_through(self._to_trash(final, aside, moving))

    async def _to_trash(self, final: str, aside: str, moving: Coroutine[Any, Any, None]) -> None:
        """Moves a final to the trash; a holder that was taken over meanwhile puts it back.

        If it dies before, the step is in the trash, from where whoever took over restores it.
        """
        await moving
        try:
            await guard.require()
        except errors.LeaseLostError:
            with contextlib.suppress(errors.ObjectExistsError):  # then it is replaced data
                await self._backend.rename_prefix(aside, final)
            raise

    async def from_trash(self, final: str, *, attempt: str | None, aside: str | None) -> None:
        """See `CommitStrategy.from_trash`."""
        if aside is None:
            await super().from_trash(final, attempt=attempt, aside=None)
            return
        where = {"key": final, "root": self._backend.root}
        await guard.require()
        try:
            await carry_through(self._backend.rename_prefix(aside, final))
        except errors.ObjectExistsError as error:
            if attempt is None:
                raise errors.DestinationOccupiedError("something is in the way", **where) from error
            await carry_through(self._bring_inside(final, attempt, aside))
        except errors.ObjectNotFoundError as error:
            raise errors.CheckpointNotFoundError(changes.NOT_THERE, **where) from error
        except (errors.TransientStorageError, errors.StorageTimeoutError):
            there = await occupant(self._backend, final)
            if there.kind not in ("ours", "orbax") or there.stored.attempt != attempt:
                raise

    async def _bring_inside(self, final: str, attempt: str, aside: str) -> None:
        """Where a record is that must stay, it takes the attempt in, and then commits it."""
        where = {"key": final, "root": self._backend.root}
        record = (await read_record(self._backend, aside)).record
        if record is None or record.attempt != attempt:
            raise errors.CheckpointNotFoundError(changes.NOT_THERE, **where)
        inner = layout.inner(final, attempt)
        kept = Trashed(attempt, keys.leaf(inner), record.manifest_digest, record.committed_ns)
        await self._change(final, changes.take_in(kept, final=final, root=self._backend.root))
        try:
            await self._backend.rename_prefix(aside, inner)
        except errors.ObjectNotFoundError as error:
            raise errors.CheckpointNotFoundError(changes.NOT_THERE, **where) from error
        except (errors.TransientStorageError, errors.StorageTimeoutError):
            if (await read_record(self._backend, inner)).attempt != attempt:
                raise
        await super().from_trash(final, attempt=attempt, aside=None)

    async def _move_out(self, final: str, stored: StoredRecord, aside: str, expected: str) -> None:
        where = {"key": final, "root": self._backend.root}
        if not stored.committed:
            raise errors.CheckpointNotFoundError("nothing is committed here", **where)
        if stored.attempt != expected:
            raise errors.CommitConflictError(
                f"{stored.attempt} is committed here by now, not {expected}; it stays", **where
            )
        try:
            await self._backend.rename_prefix(final, aside)
        except errors.ObjectNotFoundError as error:
            raise errors.CheckpointNotFoundError("nothing is committed here", **where) from error
        except (errors.TransientStorageError, errors.StorageTimeoutError):
            if (await read_record(self._backend, aside)).attempt is None:
                raise
        moved = await read_record(self._backend, aside)
        if moved.record is None:
            # A sweep took over: it deleted what was moved out, or put it back.
            now = await read_record(self._backend, final)
            if not now.committed:
                return
            moved = now
        elif moved.attempt == expected and not _stays(moved):
            return
        else:
            await self._move_back(aside, final)
        if moved.attempt == expected and not _stays(moved):
            raise errors.CommitConflictError("it was brought back meanwhile; it stays", **where)
        raise errors.CommitConflictError(
            f"{moved.attempt} was committed meanwhile, not {expected}; it stays", **where
        )

    async def _take_out_orbax(self, final: str, aside: str) -> None:
        async def move_out(to: str) -> None:
            await orbax.move_out(self._backend, final, to)

        await self._take_out(final, aside, layout.new_attempt_id(), move_out)

    async def _take_out(
        self, final: str, aside: str, attempt: str, move_out: Callable[[str], Awaitable[None]]
    ) -> None:
        """Moves a final aside; under a lease in two steps, of which the second decides.

        A rename asks no condition, so the lease is asked for after the first one. Whoever
        takes the run over moves back what it finds between the two.
        """
        holder = guard.current()
        if holder is None:
            await move_out(aside)
            return
        await holder.require()
        leaving = layout.leaving(final, attempt, holder.epoch)
        await move_out(leaving)
        try:
            await guard.require()
            await self._rename_surely(leaving, aside)
        except errors.ObjectNotFoundError as error:
            raise errors.LeaseLostError(
                "another process took this run over and put the checkpoint back",
                key=final,
                root=self._backend.root,
            ) from error
        except Exception:
            await restore_leaving(self._backend, leaving, final)
            raise

    async def _rename_surely(self, source: str, destination: str) -> None:
        try:
            await self._backend.rename_prefix(source, destination)
        except (errors.TransientStorageError, errors.StorageTimeoutError):
            there = await self._backend.children(destination)
            if not (there.objects or there.prefixes):
                raise

    async def _move_back(self, aside: str, final: str) -> None:
        try:
            await self._backend.rename_prefix(aside, final)
        except errors.ObjectExistsError:
            # A newer one stands there by now: what was moved out is replaced data.
            await self._mark_displaced(aside)

    async def sweep(
        self, parent: str, *, older_than: float = identity.DEFAULT_TTL_S
    ) -> SweepReport:
        """See `CommitStrategy.sweep`."""
        from holdfast_storage.commit.sweep import HiddenSweeper

        sweeper = HiddenSweeper(self._backend, self._fence, self._grace_s)
        return await self._run_sweep(sweeper, parent, older_than)

    async def _reap_replaced(self, final: str, stored: StoredRecord) -> None:
        from holdfast_storage.commit.sweep import reap_displaced

        await super()._reap_replaced(final, stored)
        if stored.committed:
            await reap_displaced(self._backend, final, grace_s=self._grace_s)


def _stays(stored: StoredRecord) -> bool:
    """Whether a final must stay in place: it holds more than the checkpoint."""
    return stored.record is not None and bool(stored.record.data or stored.record.trashed)


async def restore_leaving(backend: StorageBackend, leaving: str, final: str) -> None:
    """Puts back what a removal under a lease has moved out and not decided about.

    Where a newer one stands by now it is replaced data, and stays for its grace period.
    """
    try:
        await backend.rename_prefix(leaving, final)
    except errors.ObjectNotFoundError:
        return  # decided, or put back by another
    except errors.ObjectExistsError:
        found = layout.parse_hidden(keys.leaf(leaving))
        assert found is not None
        aside = layout.hidden(final, "displaced", found.attempt)
        try:
            await backend.rename_prefix(leaving, aside)
        except (errors.ObjectNotFoundError, errors.ObjectExistsError):
            return
        await backend.put(keys.join(aside, layout.DISPLACED_FILE), b"", parents=False)


async def finish_leaving(backend: StorageBackend, leaving: str, found: layout.HiddenName) -> None:
    """Decides a removal in the place of the remover, which began it by right."""
    record = (await read_record(backend, leaving)).record
    kind = "orbax" if record is None else "retired"
    final = keys.join(keys.parent(leaving), found.leaf)
    aside = layout.hidden(final, kind, found.attempt, unique=True)
    try:
        await backend.rename_prefix(leaving, aside)
    except errors.ObjectNotFoundError:
        return  # decided, or put back by the remover
