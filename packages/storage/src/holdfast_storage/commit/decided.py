"""Commit by a decision and a rename: for stores whose rename proves nothing.

Where a folder moves atomically, but what happens to a destination that exists is not
documented, the rename cannot be the decision. Here a conditional put of the hidden sibling
`.<leaf>.commit` decides, and the rename of the attempt onto the final, by the winner,
publishes. Whoever finds a decision that was not published finishes it: the rename has one
source and one destination, so that it happens once, whoever asks.

Until the final has a record of its own, the decision is the record: fences are written into
it, on the same condition. From then on the final's record rules, as in `PointerCommit`, and
further attempts move inside the final. Decisions are never deleted: a writer that slept
since before the first one would otherwise make another.
"""

from __future__ import annotations

import dataclasses
import logging

from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE, CommitRecord, Manifest
from holdfast_storage import errors, keys
from holdfast_storage.commit import guard, identity, layout
from holdfast_storage.commit.occupancy import Occupant, occupant
from holdfast_storage.commit.pointer import PointerCommit
from holdfast_storage.commit.record import StoredRecord, read_record, read_record_at
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.strategy import SweepReport, Transaction
from holdfast_storage.values import IfAbsent, Listing

_log = logging.getLogger(__name__)


class DecidedRenameCommit(PointerCommit):
    """The protocol for hierarchical buckets; see `PointerCommit` for the arguments."""

    name = "decided-rename"
    renames = True

    def _staging(self, final: str, attempt: str) -> str:
        return layout.hidden(final, "attempt", attempt)

    async def begin(self, final: str, *, kind: str = "save") -> Transaction:
        """See `CommitStrategy.begin`. Publishes first what a crash left decided."""
        layout.check_final(final, root=self._backend.root)
        decided = await self._decision(final)
        if decided.attempt is not None:
            await carry_through(self._publish(final, decided.attempt))
        return await super().begin(final, kind=kind)

    async def _decision(self, final: str) -> StoredRecord:
        return await read_record_at(self._backend, layout.decision(final))

    async def _commit(self, txn: Transaction, manifest: Manifest, *, replace: bool) -> CommitRecord:
        stored = await read_record(self._backend, txn.final)
        if stored.attempt == txn.attempt and stored.record is not None:
            return stored.record
        await self._judge(stored, txn, replace=replace)
        if not await self._is_inside(txn):
            await self._prepare(txn, manifest)

        async def send() -> CommitRecord | None:
            return await self._try(txn, manifest, replace=replace)

        return await self._until_known(send, txn.final, attempt=txn.attempt)

    async def _prepare(self, txn: Transaction, manifest: Manifest) -> None:
        """Stages the record and the manifest, once; a repeated commit finds them."""
        try:
            await self._backend.stat(keys.join(txn.staging, ATTEMPT_FILE))
        except errors.ObjectNotFoundError:
            return  # moved or swept; the decision says which
        record = dataclasses.replace(self._new_record(txn, manifest), data="")
        key = keys.join(txn.staging, COMMIT_FILE)
        try:
            await self._backend.put(key, record.to_bytes(), condition=IfAbsent(), parents=False)
            await self._put_manifest(txn.staging, manifest)
        except errors.ObjectExistsError:
            await self._put_manifest(txn.staging, manifest)
        except errors.ObjectNotFoundError:
            return

    async def _try(
        self, txn: Transaction, manifest: Manifest, *, replace: bool
    ) -> CommitRecord | None:
        """One try at the decision, after a read-back. None means: look again."""
        stored = await read_record(self._backend, txn.final)
        if stored.attempt == txn.attempt and stored.record is not None:
            return stored.record
        await self._judge(stored, txn, replace=replace)
        if await self._is_inside(txn):
            return await self._decide(txn, manifest, replace=replace)
        found = await occupant(self._backend, txn.final)
        if found.kind == "absent" and found.stored.record is None:
            return await self._decide_and_publish(txn, manifest)
        return await self._move_inside(txn, manifest, found, replace=replace)

    async def _decide_and_publish(
        self, txn: Transaction, manifest: Manifest
    ) -> CommitRecord | None:
        decided = await self._decision(txn.final)
        if txn.attempt in decided.dead:
            raise self._swept(txn.staging, "another process took it for dead")
        if decided.attempt == txn.attempt:
            await self._publish_mine(txn)
            return None
        if decided.attempt is not None and await self._publish(txn.final, decided.attempt):
            return None
        await guard.require()
        await self._require_files(txn, txn.staging, manifest)
        # What was decided before was published and is gone since, record and all.
        gone = (decided.attempt,) if decided.attempt else ()
        record = dataclasses.replace(
            self._new_record(txn, manifest), data="", dead=decided.dead + gone
        )
        await self._swap_decision(txn.final, decided, record)
        await self._publish_mine(txn)
        return None

    async def _swap_decision(self, final: str, stored: StoredRecord, new: CommitRecord) -> None:
        """The conditional put of a decision: the only way in which one ever changes."""
        await self._backend.put(
            layout.decision(final), new.to_bytes(), condition=stored.unchanged, parents=False
        )

    async def _publish_mine(self, txn: Transaction) -> None:
        """After my decision; the read-back that follows alone says "committed"."""
        if await self._publish(txn.final, txn.attempt):
            return
        if (await read_record(self._backend, txn.final)).record is None:
            raise self._swept(txn.staging, "its folder is gone")

    async def _publish(self, final: str, attempt: str) -> bool:
        """Moves a decided attempt into place; False if there is nothing of it to move.

        Asking twice, or by two processes, is the same as asking once.
        """
        staging = self._staging(final, attempt)
        try:
            await self._backend.stat(keys.join(staging, COMMIT_FILE))
        except errors.ObjectNotFoundError:
            return False
        if (await read_record(self._backend, final)).record is not None:
            return False  # it stands there already, or another came by another way
        try:
            await self._backend.rename_prefix(staging, final)
        except errors.ObjectNotFoundError:
            return True  # somebody else was faster
        except errors.ObjectExistsError as error:
            await self._in_the_way(final, error)
        return True

    async def _in_the_way(self, final: str, error: errors.ObjectExistsError) -> None:
        """The final holds something: fine if it is ours, for then the record says what."""
        found = await occupant(self._backend, final)
        if found.kind in ("foreign", "orbax"):
            raise errors.DestinationOccupiedError(
                f"something came in the way of a decided checkpoint ({found.detail or found.kind}"
                "); move it elsewhere, then the next save publishes",
                key=final,
                root=self._backend.root,
            ) from error

    async def _move_inside(
        self, txn: Transaction, manifest: Manifest, found: Occupant, *, replace: bool
    ) -> CommitRecord | None:
        """Where the final must stay in place, the attempt moves inside and its record decides.

        The record exists before the move: an attempt inside is fenced by the final's record
        and by nothing else.
        """
        replaced = await self._replaced_here(txn, replace=replace)
        await self._require_files(txn, txn.staging, manifest)
        if found.stored.record is None:
            await self._swap(txn.final, found.stored, CommitRecord(state="none"))
        try:
            await self._backend.rename_prefix(txn.staging, layout.inner(txn.final, txn.attempt))
        except errors.ObjectNotFoundError as error:
            if not await self._is_inside(txn):
                raise self._swept(txn.staging, "its folder is gone") from error
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

    async def abort(self, txn: Transaction) -> None:
        """See `CommitStrategy.abort`."""
        if txn.attempt in self._undecided:
            self._undecided.discard(txn.attempt)
        elif not await self._fence_hidden(txn.final, txn.attempt):
            return
        await self._backend.delete_prefix(txn.staging)
        if await self._is_inside(txn):
            await super().abort(txn)

    async def fence(self, final: str, attempt: str) -> bool:
        """See `CommitStrategy.fence`. Publishes what is decided."""
        fenced = await self._fence_hidden(final, attempt)
        if not fenced:
            await self._settle(final, attempt)
        return fenced

    async def _fence_hidden(self, final: str, attempt: str) -> bool:
        """Makes it impossible to commit an attempt in its sibling; False if it is decided."""
        fenced = True

        async def send() -> CommitRecord | None:
            nonlocal fenced
            stored = await read_record(self._backend, final)
            decided = await self._decision(final)
            if stored.attempt == attempt:
                fenced = False
                return stored.record
            if decided.attempt == attempt and stored.record is None:
                fenced = False
                return decided.record
            if attempt in stored.dead or attempt in decided.dead:
                return stored.record or decided.record
            if stored.record is not None:
                new = dataclasses.replace(stored.record, dead=(*stored.dead, attempt))
                await self._swap(final, stored, new)
            old = decided.record or CommitRecord(state="none")
            new = dataclasses.replace(old, dead=(*old.dead, attempt))
            await self._swap_decision(final, decided, new)
            return new

        await carry_through(self._until_known(send, final))
        return fenced

    async def sweep(
        self, parent: str, *, older_than: float = identity.DEFAULT_TTL_S
    ) -> SweepReport:
        """See `CommitStrategy.sweep`. Publishes what a crash left decided."""
        from holdfast_storage.commit.sweep import DecidedSweeper

        sweeper = DecidedSweeper(
            self._backend, self._fence, self._grace_s, self._fence_hidden, self._settle
        )
        return await self._run_sweep(sweeper, parent, older_than)

    async def settle(self, parent: str, listing: Listing) -> bool:
        """Publishes what is decided one level below `parent`; see `StorageBackend.settle`."""
        published = False
        objects = {info.key for info in listing.objects}
        for prefix in listing.prefixes:
            found = layout.parse_hidden(keys.leaf(prefix))
            if found is None or found.kind != "attempt":
                continue
            final = keys.join(parent, found.leaf)
            if layout.decision(final) not in objects:
                continue
            published = True
            try:
                await self._settle(final, found.attempt)
            except errors.StorageError:
                _log.warning("%s is decided and cannot be published", final, exc_info=True)
        return published

    async def _settle(self, final: str, attempt: str) -> str:
        """What became of a hidden attempt: `published` (now or before), `dead`, or `open`."""
        stored = await read_record(self._backend, final)
        decided = await self._decision(final)
        if attempt in stored.dead or attempt in decided.dead:
            return "dead"
        if stored.attempt == attempt:
            return "published"
        if decided.attempt == attempt and stored.record is None:
            await carry_through(self._publish(final, attempt))
            return "published"
        return "open"
