"""What occupies a final (rule R8): nothing, ours, Orbax's, or something foreign."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE, MANIFEST_FILE
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.layout import ADVISORY_FILE, INNER_PREFIX
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.values import Names

ORBAX_MARKS = frozenset(("orbax.checkpoint", "_CHECKPOINT_METADATA", "_METADATA"))

# Beside a record; without one, what is left of a removal by other means, or a copy half done.
_PARTS_OF_OURS = frozenset((ATTEMPT_FILE, MANIFEST_FILE))
_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Occupant:
    """What is at a final.

    Attributes:
        kind: `absent`, `ours` (committed), `uncommitted` (only attempts of ours), `orbax`
            or `foreign`.
        stored: The record, if there is one.
        detail: For messages: what was found.
        unfinished: Whether it is foreign because it is not all there, or not yet.
    """

    kind: str
    stored: StoredRecord
    detail: str = ""
    unfinished: bool = False


async def occupant(backend: StorageBackend, final: str) -> Occupant:
    """Looks at a final; writes nothing.

    Raises:
        RecordUnreadableError: A record is there that cannot be read.
    """
    for _ in range(_LOOKS):
        stored = await read_record(backend, final)
        if stored.committed:
            return Occupant("ours", stored)
        listing = await backend.children(final)
        there = {keys.leaf(info.key) for info in listing.objects}
        if stored.record is not None or COMMIT_FILE not in there:
            break  # else it was committed between the two: what is listed is ours
    folders = frozenset(map(keys.leaf, listing.prefixes))
    by_file = backend.orbax_commits_by_file
    found = judge_names(stored, Names(folders, frozenset(there)), by_file=by_file)
    return found or await _nothing_inside(backend, final, stored)


def judge_names(stored: StoredRecord, names: Names, *, by_file: bool) -> Occupant | None:
    """What a final holds that is not committed by us, by its record and what lies in it.

    Args:
        stored: Its record, which does not say `committed`.
        names: One level below it.
        by_file: `StorageBackend.orbax_commits_by_file`.

    Returns:
        None if it holds nothing at all.
    """
    files = names.objects - {COMMIT_FILE, ADVISORY_FILE}
    attempts = {name for name in names.prefixes if name.startswith(INNER_PREFIX)}
    others = names.prefixes - attempts
    # A record that only fences attempts does not make Orbax's checkpoint unseen.
    never_ours = stored.record is None or stored.record.state == "none"
    if COMMIT_FILE not in names.objects and files & _PARTS_OF_OURS:
        detail = f"part of a checkpoint that holdfast wrote ({COMMIT_FILE} is missing)"
        return Occupant("foreign", stored, detail, unfinished=True)
    if files & ORBAX_MARKS and never_ours:
        if by_file and ADVISORY_FILE not in names.objects:
            detail = f"an Orbax save that is not finished ({ADVISORY_FILE} is missing)"
            return Occupant("foreign", stored, detail, unfinished=True)
        return Occupant("orbax", stored)
    if stored.record is not None:
        return Occupant("uncommitted" if attempts else "absent", stored)
    if files or others:
        return Occupant("foreign", stored, ", ".join(sorted(files | others)[:5]))
    return Occupant("uncommitted", stored) if attempts else None


async def _nothing_inside(backend: StorageBackend, final: str, stored: StoredRecord) -> Occupant:
    try:
        if final:
            await backend.stat(final)
    except errors.ObjectNotFoundError:
        return Occupant("absent", stored)
    return Occupant("foreign", stored, "a file")
