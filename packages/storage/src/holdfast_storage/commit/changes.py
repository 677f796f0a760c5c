"""What a record becomes: each a function from what is stored to the record that replaces it.

A function that finds its work done returns the stored record itself; asking twice is safe,
as after a lost reply. One that finds something else raises, and nothing is changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from holdfast_metadata import CommitRecord, Trashed
from holdfast_storage import errors
from holdfast_storage.commit.record import StoredRecord

Change = Callable[[StoredRecord], CommitRecord]
NOT_THERE = "it is not in the trash any more"


def retire(expected: str, *, final: str, root: str) -> Change:
    """Un-commits attempt `expected` for good."""

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record
        if record is not None and record.state == "retired" and record.attempt == expected:
            return record
        record = _require(stored, expected, final, root)
        return dataclasses.replace(record, state="retired", dead=(*record.dead, expected))

    return change


def trash(expected: str, *, final: str, root: str) -> Change:
    """Un-commits attempt `expected` and keeps its data, so that it may come back."""

    def change(stored: StoredRecord) -> CommitRecord:
        if stored.record is not None and stored.record.in_trash(expected):
            return stored.record
        record = _require(stored, expected, final, root)
        kept = Trashed(expected, record.data, record.manifest_digest, record.committed_ns)
        return dataclasses.replace(
            record,
            state="trashed",
            dead=(*record.dead, expected),
            trashed=(*record.trashed, kept),
        )

    return change


def _require(stored: StoredRecord, expected: str, final: str, root: str) -> CommitRecord:
    where = {"key": final, "root": root}
    record = stored.record
    if record is None or not record.committed:
        raise errors.CheckpointNotFoundError("nothing is committed here", **where)
    if record.attempt != expected:
        raise errors.CommitConflictError(
            f"{record.attempt} is committed here by now, not {expected}; it stays", **where
        )
    return record


def restore(attempt: str, *, final: str, root: str) -> Change:
    """Commits an attempt again that is in the trash."""
    where = {"key": final, "root": root}

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record
        if record is not None and record.committed:
            if record.attempt == attempt:
                return record
            raise errors.CommitConflictError(
                f"another attempt ({record.attempt}) is committed here", **where
            )
        kept = record.in_trash(attempt) if record is not None else None
        if record is None or kept is None:
            raise errors.CheckpointNotFoundError(NOT_THERE, **where)
        return dataclasses.replace(
            record,
            state="committed",
            attempt=attempt,
            data=kept.data,
            manifest_digest=kept.manifest_digest,
            committed_ns=kept.committed_ns,
            dead=tuple(other for other in record.dead if other != attempt),
            trashed=tuple(other for other in record.trashed if other.attempt != attempt),
        )

    return change


def take_in(kept: Trashed, *, final: str, root: str) -> Change:
    """Makes room in the final for an attempt in the trash that was moved out of it whole."""
    where = {"key": final, "root": root}

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record
        if record is None:
            raise errors.DestinationOccupiedError(
                "an unfinished save, or an empty folder, is in the way", **where
            )
        if record.committed:
            raise errors.CommitConflictError(
                f"another attempt ({record.attempt}) is committed here", **where
            )
        if record.in_trash(kept.attempt) is not None:
            return record
        return dataclasses.replace(
            record, dead=(*record.dead, kept.attempt), trashed=(*record.trashed, kept)
        )

    return change


def empty(attempt: str, *, final: str, root: str) -> Change:
    """Gives up an attempt that is in the trash; then its data may be deleted."""

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record
        if record is None or (record.committed and record.attempt == attempt):
            raise errors.CheckpointNotFoundError(NOT_THERE, key=final, root=root)
        if record.in_trash(attempt) is None:
            return record
        last = record.state == "trashed" and record.attempt == attempt
        return dataclasses.replace(
            record,
            state="retired" if last else record.state,
            trashed=tuple(other for other in record.trashed if other.attempt != attempt),
        )

    return change


def retire_orbax(until_ns: int, *, final: str, root: str) -> Change:
    """Hides Orbax's checkpoint in the final itself; its files are those up to `until_ns`."""

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record or CommitRecord(state="none")
        if record.committed:
            raise errors.CommitConflictError(
                f"{record.attempt} is committed here by now; it stays", key=final, root=root
            )
        if record.orbax_until_ns is not None:
            return record
        return dataclasses.replace(record, state="retired", orbax_until_ns=until_ns)

    return change


def forget_orbax(until_ns: int) -> Change:
    """After Orbax's files are gone: what Orbax saves here from now on counts again."""

    def change(stored: StoredRecord) -> CommitRecord:
        record = stored.record or CommitRecord(state="none")
        if record.orbax_until_ns != until_ns:
            return record
        hidden = record.state == "retired" and record.attempt is None
        state = "none" if hidden else record.state
        return dataclasses.replace(record, state=state, orbax_until_ns=None)

    return change
