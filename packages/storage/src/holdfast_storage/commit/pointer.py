"""Commit by one conditional put of the record: for stores that cannot rename.

Data lies in `<final>/attempt-<id>/` from the start; `<final>/_COMMIT.json` points at it.
The put of that record, create-only or conditional on the version that was read, is the
one decision. Records are never deleted: a tombstone keeps the list of fenced attempts, so
that a writer which slept through its own removal can never commit.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from holdfast_metadata import (
    ATTEMPT_FILE,
    COMMIT_FILE,
    MANIFEST_FILE,
    AttemptMark,
    CommitRecord,
    Manifest,
    ManifestEntry,
    MetadataError,
)
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import changes, guard, identity, layout, orbax
from holdfast_storage.commit.occupancy import occupant
from holdfast_storage.commit.pace import Pace
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.staging import PROTOCOL_FILES, StagingArea
from holdfast_storage.commit.strategy import (
    CommitStrategy,
    Removal,
    SweepReport,
    Transaction,
)
from holdfast_storage.values import IfAbsent, Listing, ObjectVersion

if TYPE_CHECKING:
    from holdfast_storage.commit.sweep import Sweeper

_log = logging.getLogger(__name__)
_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)
_VERDICTS = (
    errors.CommitError,
    errors.RecordUnreadableError,
    errors.CheckpointNotFoundError,
)
_LOST_RACE = (errors.ObjectExistsError, errors.PreconditionFailedError)


class PointerCommit(CommitStrategy):
    """The protocol for object stores.

    Args:
        backend: The store; it needs `create_if_absent`, and `compare_and_swap` to replace.
        grace_s: How long replaced data stays for readers that opened it, in seconds.
        decision_deadline_s: How long an unknown outcome is asked for before
            `CommitUnknownError`.
        pause_s: First pause between such questions; it doubles.
    """

    name = "pointer"

    def __init__(
        self,
        backend: StorageBackend,
        *,
        grace_s: float = 600.0,
        decision_deadline_s: float = 60.0,
        pause_s: float = 0.05,
    ) -> None:
        self._backend = backend
        self._grace_s = grace_s
        self._deadline_s = decision_deadline_s
        self._pause_s = pause_s
        self.pace = Pace()
        # Attempts begun here whose decision has not left: only these need no fence.
        self._undecided: set[str] = set()

    async def begin(self, final: str, *, kind: str = "save") -> Transaction:
        """See `CommitStrategy.begin`."""
        layout.check_final(final, root=self._backend.root)
        found = await occupant(self._backend, final)
        if found.kind == "foreign":
            raise errors.DestinationOccupiedError(
                f"something that is no checkpoint is here ({found.detail}); holdfast never "
                "replaces what it did not write",
                key=final,
                root=self._backend.root,
            )
        await self._reap_replaced(final, found.stored)
        attempt = layout.new_attempt_id()
        txn = Transaction(
            final=final,
            staging=self._staging(final, attempt),
            attempt=attempt,
            strategy=self.name,
            expects_attempt=found.stored.attempt,
            expects_token=found.stored.info.version.token if found.stored.info else None,
        )
        mark = identity.new_mark(attempt, kind, extra=guard.said_in_marks())
        await self._put_mark(txn.staging, mark)
        self._undecided.add(attempt)
        return txn

    async def _put_mark(self, staging: str, mark: AttemptMark) -> None:
        """Marks a staging; if that fails it may be there all the same, and nobody's."""
        key = keys.join(staging, ATTEMPT_FILE)
        try:
            await self._backend.put(key, mark.to_bytes(), condition=IfAbsent())
        except errors.StorageError:
            try:
                await self._backend.delete_prefix(staging)
            except errors.StorageError:  # else it is swept once this process has ended
                _log.debug("%s may have been left", staging, exc_info=True)
            raise

    def _staging(self, final: str, attempt: str) -> str:
        return layout.inner(final, attempt)

    def area(self, txn: Transaction) -> StagingArea:
        """See `CommitStrategy.area`."""
        return StagingArea(self._backend, txn.staging)

    async def seal(self, txn: Transaction, area: StagingArea) -> tuple[ManifestEntry, ...]:
        """See `CommitStrategy.seal`."""
        await self._backend.sync_prefix(txn.staging)
        return await area.entries()

    async def commit(
        self, txn: Transaction, entries: Sequence[ManifestEntry], *, replace: bool = False
    ) -> CommitRecord:
        """See `CommitStrategy.commit`. Cancellation waits until the outcome is known."""
        manifest = _merge(entries)
        self._undecided.discard(txn.attempt)
        return await carry_through(self._commit(txn, manifest, replace=replace))

    async def _commit(self, txn: Transaction, manifest: Manifest, *, replace: bool) -> CommitRecord:
        stored = await read_record(self._backend, txn.final)
        if stored.attempt == txn.attempt and stored.record is not None:
            return stored.record
        await self._judge(stored, txn, replace=replace)
        replaced = await self._replaced_here(txn, replace=replace)
        await self._put_manifest(txn.staging, manifest)
        committed = await self._decide(txn, manifest, replace=replace)
        await self._advise_orbax(txn)
        await self._remove_replaced(txn, replaced)
        return committed

    def _new_record(self, txn: Transaction, manifest: Manifest) -> CommitRecord:
        return CommitRecord(
            state="committed",
            attempt=txn.attempt,
            data=layout.INNER_PREFIX + txn.attempt,
            manifest_digest=manifest.digest(),
            committed_ns=time.time_ns(),
        )

    async def _judge(self, stored: StoredRecord, txn: Transaction, *, replace: bool) -> None:
        """Refuses to go on where another attempt stands, or this one is fenced."""
        where = {"key": txn.final, "root": self._backend.root}
        if txn.attempt in stored.dead:
            raise errors.AttemptLostError(
                f"the attempt {txn.attempt} was fenced: another process took it for dead, or it "
                "was replaced",
                **where,
            )
        record = stored.record
        if record is not None and not record.committed and record.attempt == txn.attempt:
            raise errors.AttemptLostError(
                f"the attempt {txn.attempt} was committed and has been deleted since", **where
            )
        if not stored.committed:
            return
        if not replace:
            raise errors.CommitConflictError(
                f"another attempt ({await self._who(txn.final, stored)}) is committed here", **where
            )
        if stored.attempt != txn.expects_attempt:
            raise errors.CommitConflictError(
                f"the checkpoint to replace was {txn.expects_attempt}; "
                f"{await self._who(txn.final, stored)} was committed meanwhile and stays",
                **where,
            )

    async def _who(self, final: str, stored: StoredRecord) -> str:
        """The committed attempt and its writer, for the one that lost."""
        assert stored.record is not None
        try:
            key = keys.join(final, stored.record.data, ATTEMPT_FILE)
            mark = AttemptMark.from_bytes(await self._backend.get(key))
        except (errors.StorageError, MetadataError):
            return str(stored.attempt)
        return f"{stored.attempt}, written by process {mark.pid} on {mark.host}"

    async def _put_manifest(self, staging: str, manifest: Manifest) -> None:
        key = keys.join(staging, MANIFEST_FILE)
        try:
            await self._backend.put(key, manifest.to_bytes(), condition=IfAbsent(), parents=False)
        except errors.ObjectExistsError:
            if await self._backend.get(key) != manifest.to_bytes():
                raise
        except errors.ObjectNotFoundError as error:
            raise self._swept(staging, "its folder is gone") from error

    async def _require_files(self, txn: Transaction, staging: str, manifest: Manifest) -> None:
        """Lists the staging against the manifest, just before the decision (rule R2)."""
        sizes = {
            keys.relative(info.key, staging): info.size
            async for info in self._backend.walk(staging)
        }
        missing = [e.path for e in manifest.entries if sizes.get(e.path) != e.size]
        if ATTEMPT_FILE not in sizes:
            missing.append(ATTEMPT_FILE)
        if missing:
            raise self._swept(staging, f"{len(missing)} files are missing, as {missing[0]!r}")
        unlisted = sorted(sizes.keys() - manifest.by_path.keys() - PROTOCOL_FILES)
        if unlisted:
            raise errors.CommitError(
                f"the attempt holds {len(unlisted)} files that nobody listed, as "
                f"{unlisted[0]!r}; they would not be checked, so nothing was committed",
                key=staging,
                root=self._backend.root,
            )

    def _swept(self, staging: str, why: str) -> errors.AttemptLostError:
        return errors.AttemptLostError(
            f"the attempt's data was removed ({why}); it cannot be committed",
            key=staging,
            root=self._backend.root,
        )

    async def _decide(self, txn: Transaction, manifest: Manifest, *, replace: bool) -> CommitRecord:
        """Puts the record until the outcome is known: mine, another's, or unknown.

        The order is what makes it safe: read the version, then list the files, then put on
        that version. Whoever deletes files changes the record first, so that either the
        listing shows it or the put fails.
        """
        record = PointerCommit._new_record(self, txn, manifest)
        staging = layout.inner(txn.final, txn.attempt)

        async def send() -> CommitRecord | None:
            stored = await read_record(self._backend, txn.final)
            if stored.attempt == txn.attempt and stored.record is not None:
                return stored.record
            await self._judge(stored, txn, replace=replace)
            await guard.require()
            await self._require_files(txn, staging, manifest)
            dead = stored.dead + ((stored.attempt,) if stored.attempt else ())
            new = dataclasses.replace(record, dead=dead)
            if stored.record is not None:  # what is there besides, and not to be forgotten
                there = stored.record
                new = dataclasses.replace(
                    new, trashed=there.trashed, orbax_until_ns=there.orbax_until_ns
                )
            try:
                await self._swap(txn.final, stored, new)
            except errors.ObjectNotFoundError as error:
                raise self._swept(staging, "its folder is gone") from error
            return new

        return await self._until_known(send, txn.final, attempt=txn.attempt)

    async def _swap(self, final: str, stored: StoredRecord, new: CommitRecord) -> ObjectVersion:
        """The conditional put of a record: the only way in which one ever changes."""
        return await self._backend.put(
            keys.join(final, COMMIT_FILE),
            new.to_bytes(),
            condition=stored.unchanged,
            parents=False,
        )

    async def _until_known(
        self,
        send: Callable[[], Awaitable[CommitRecord | None]],
        final: str,
        *,
        attempt: str | None = None,
    ) -> CommitRecord:
        """Repeats a decision, which starts with a read-back, until its outcome is known."""
        deadline = time.monotonic() + self._deadline_s
        pause = self._pause_s
        while True:
            failure: errors.StorageError | None = None
            try:
                done = await send()
                if done is not None:
                    return done
            except (*_LOST_RACE, *_UNCERTAIN) as error:
                failure = error
                _log.debug("reading the record of %s again: %s", final, error)
            except _VERDICTS:
                raise
            except errors.StorageError as error:
                await self._refuse_unless_done(final, attempt, error)
                continue
            if time.monotonic() > deadline:
                raise errors.CommitUnknownError(
                    f"the outcome could not be read back within {self._deadline_s} s; nothing "
                    f"was deleted: {failure}",
                    key=final,
                    root=self._backend.root,
                ) from failure
            if isinstance(failure, _UNCERTAIN):
                await asyncio.sleep(pause)
                pause = min(pause * 2, 5.0)

    async def _replaced_here(self, txn: Transaction, *, replace: bool) -> Listing:
        """What lies in the final itself and goes with a replacement: Orbax's checkpoint.

        Listed before the decision: what arrives later is nobody's to remove.
        """
        found = await occupant(self._backend, txn.final)
        where = {"key": txn.final, "root": self._backend.root}
        if found.kind == "foreign":
            raise errors.DestinationOccupiedError(
                f"something that is no checkpoint is here ({found.detail})", **where
            )
        if found.kind != "orbax":
            return Listing((), ())
        if not replace:
            raise errors.CommitConflictError("a checkpoint written by Orbax is here", **where)
        there = await self._backend.children(txn.final)
        prefixes = [p for p in there.prefixes if not keys.leaf(p).startswith(layout.INNER_PREFIX)]
        objects = [o for o in there.objects if keys.leaf(o.key) != COMMIT_FILE]
        return Listing(tuple(prefixes), tuple(objects))

    async def _refuse_unless_done(
        self, final: str, attempt: str | None, error: errors.StorageError
    ) -> None:
        """An error that looks final may come after the effect (rule R10): ask, then sync."""
        if attempt is None or not await self._is_committed(final, attempt):
            raise error
        try:
            await self._backend.sync_prefix(final)
        except errors.StorageError as failure:
            raise errors.CommitUnknownError(
                f"the checkpoint is visible, but could not be made durable: {failure}",
                key=final,
                root=self._backend.root,
            ) from error

    async def _is_committed(self, final: str, attempt: str) -> bool:
        return (await read_record(self._backend, final)).attempt == attempt

    async def _advise_orbax(self, txn: Transaction) -> None:
        """Best effort, after the fact: nothing here can undo the commit."""
        try:
            await self._backend.put(
                keys.join(txn.final, layout.ADVISORY_FILE),
                b"An advisory for Orbax's clean-up; _COMMIT.json decides.\n",
            )
        except errors.StorageError:
            _log.warning("could not write the advisory of %s", txn.final, exc_info=True)

    async def _remove_replaced(self, txn: Transaction, replaced: Listing) -> None:
        """Best effort too; the marks of a replaced checkpoint go first."""
        try:
            for info in replaced.objects:
                if keys.leaf(info.key) != layout.ADVISORY_FILE:
                    await self._backend.delete(info.key)
            for prefix in replaced.prefixes:
                await self._backend.delete_prefix(prefix)
        except errors.StorageError:
            _log.warning("could not remove what %s replaced", txn.final, exc_info=True)

    async def abort(self, txn: Transaction) -> None:
        """See `CommitStrategy.abort`."""
        if txn.attempt in self._undecided:
            self._undecided.discard(txn.attempt)
        elif not await self._fence(txn.final, txn.attempt):
            return
        await self._backend.delete_prefix(layout.inner(txn.final, txn.attempt))

    async def fence(self, final: str, attempt: str) -> bool:
        """See `CommitStrategy.fence`."""
        return await self._fence(final, attempt)

    async def _fence(self, final: str, attempt: str) -> bool:
        """Makes it impossible to commit an attempt; False if it was committed and is kept."""
        fenced = True

        async def send() -> CommitRecord | None:
            nonlocal fenced
            stored = await read_record(self._backend, final)
            if stored.attempt == attempt or stored.in_trash(attempt):
                fenced = False
                return stored.record
            if attempt in stored.dead:
                return stored.record
            old = stored.record or CommitRecord(state="none")
            new = dataclasses.replace(old, dead=(*old.dead, attempt))
            await self._swap(final, stored, new)
            return new

        await carry_through(self._until_known(send, final))
        return fenced

    async def uncommit(self, final: str, *, expected: str) -> Removal:
        """See `CommitStrategy.uncommit`."""
        where = {"final": final, "root": self._backend.root}
        retired = await self._change(final, changes.retire(expected, **where))

        async def remove() -> None:
            await self._withdraw_advice(final)
            await self._delete_data(final, retired.data)

        return remove

    async def uncommit_orbax(self, final: str) -> Removal:
        """See `CommitStrategy.uncommit_orbax`."""
        await orbax.require_orbax(self._backend, final)
        until = await orbax.newest_ns(self._backend, final)
        where = {"final": final, "root": self._backend.root}
        await self._change(final, changes.retire_orbax(until, **where))

        async def remove() -> None:
            await self._finish_orbax(final)

        return remove

    async def _finish_orbax(self, final: str) -> None:
        """Deletes what is left of a checkpoint of Orbax's whose removal has begun."""
        record = (await read_record(self._backend, final)).record
        if record is None or record.orbax_until_ns is None:
            return
        await orbax.delete_files(self._backend, final, record.orbax_until_ns, self.pace)
        await self._change(final, changes.forget_orbax(record.orbax_until_ns))

    async def to_trash(self, final: str, *, expected: str | None, aside: str) -> None:
        """See `CommitStrategy.to_trash`: the data stays where it is."""
        where = {"final": final, "root": self._backend.root}
        if expected is None:
            raise errors.UnsupportedOperationError(
                "Orbax wrote this checkpoint, and this store cannot move it to a trash",
                key=final,
                root=self._backend.root,
            )
        await self._change(final, changes.trash(expected, **where))

    async def from_trash(self, final: str, *, attempt: str | None, aside: str | None) -> None:
        """See `CommitStrategy.from_trash`."""
        where = {"final": final, "root": self._backend.root}
        await self._change(final, changes.restore(str(attempt), **where))

    async def empty_trash(self, final: str, *, attempt: str) -> Removal:
        """See `CommitStrategy.empty_trash`."""
        record = (await read_record(self._backend, final)).record
        kept = record.in_trash(attempt) if record is not None else None
        where = {"final": final, "root": self._backend.root}
        await self._change(final, changes.empty(attempt, **where))

        async def remove() -> None:
            await self._withdraw_advice(final)
            if kept is not None:
                await self._delete_data(final, kept.data)

        return remove

    async def _change(self, final: str, change: changes.Change) -> CommitRecord:
        """Changes a record by one conditional put, asked for until the outcome is known."""

        async def send() -> CommitRecord | None:
            stored = await read_record(self._backend, final)
            new = change(stored)
            if new is not stored.record:
                await guard.require()  # after the record was read: see `guard`
                await self._swap(final, stored, new)
            return new

        return await carry_through(self._until_known(send, final))

    async def _withdraw_advice(self, final: str) -> None:
        """Orbax's clean-up may take what is left here, unless something is to stay."""
        record = (await read_record(self._backend, final)).record
        if record is not None and not record.committed and not record.trashed:
            await self._backend.delete(keys.join(final, layout.ADVISORY_FILE))

    async def _delete_data(self, final: str, data: str) -> None:
        """Deletes what a record pointed at that does no more, and nothing else."""
        from holdfast_storage.commit.sweep import delete_replaced_root

        await delete_replaced_root(self._backend, final)  # first: see the sweep
        if data:
            await self.pace.delete_prefix(self._backend, keys.join(final, data))

    async def _reap_replaced(self, final: str, stored: StoredRecord) -> None:
        """Deletes data that was replaced, sparing the youngest for `grace_s`."""
        from holdfast_storage.commit.sweep import reap_inner

        if stored.record is not None:
            await reap_inner(self._backend, final, stored, grace_s=self._grace_s)

    async def sweep(
        self, parent: str, *, older_than: float = identity.DEFAULT_TTL_S
    ) -> SweepReport:
        """See `CommitStrategy.sweep`."""
        from holdfast_storage.commit.sweep import Sweeper

        sweeper = Sweeper(self._backend, self._fence, self._grace_s)
        return await self._run_sweep(sweeper, parent, older_than)

    async def _run_sweep(self, sweeper: Sweeper, parent: str, older_than: float) -> SweepReport:
        sweeper.pace, sweeper.finish_orbax = self.pace, self._finish_orbax
        return await sweeper.run(parent, older_than=older_than)


def _merge(entries: Sequence[ManifestEntry]) -> Manifest:
    """One manifest of what all processes list; some list the same file, with equal size.

    Raises:
        CommitError: Two processes disagree about a file.
    """
    merged: dict[str, ManifestEntry] = {}
    for entry in entries:
        known = merged.setdefault(entry.path, entry)
        digests = {known.digest, entry.digest} - {None}
        if known.size != entry.size or len(digests) > 1:
            raise errors.CommitError(
                f"two processes disagree about the file {entry.path!r}: {known} and {entry}"
            )
        if known.digest is None:
            merged[entry.path] = entry
    return Manifest(merged.values())
