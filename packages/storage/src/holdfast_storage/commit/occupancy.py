"""What occupies a final (rule R8): nothing, ours, Orbax's, or something foreign."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_metadata import COMMIT_FILE
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.layout import ADVISORY_FILE, INNER_PREFIX
from holdfast_storage.commit.record import StoredRecord, read_record

ORBAX_MARKS = frozenset(("orbax.checkpoint", "_CHECKPOINT_METADATA", "_METADATA"))

_LOOKS = 5


@dataclass(frozen=True, slots=True)
class Occupant:
    """What is at a final.

    Attributes:
        kind: `absent`, `ours` (committed), `uncommitted` (only attempts of ours), `orbax`
            or `foreign`.
        stored: The record, if there is one.
        detail: For messages: what was found.
        unfinished: Whether it is foreign because Orbax did not finish it, or has not yet.
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
    files = there - {COMMIT_FILE, ADVISORY_FILE}
    folders = {keys.leaf(prefix) for prefix in listing.prefixes}
    attempts = {name for name in folders if name.startswith(INNER_PREFIX)}
    # A record that only fences attempts does not make Orbax's checkpoint unseen.
    never_ours = stored.record is None or stored.record.state == "none"
    if files & ORBAX_MARKS and never_ours:
        if backend.orbax_commits_by_file and ADVISORY_FILE not in there:
            detail = f"an Orbax save that is not finished ({ADVISORY_FILE} is missing)"
            return Occupant("foreign", stored, detail, unfinished=True)
        return Occupant("orbax", stored)
    if stored.record is not None:
        return Occupant("uncommitted" if attempts else "absent", stored)
    if files or folders - attempts:
        shown = ", ".join(sorted(files | (folders - attempts))[:5])
        return Occupant("foreign", stored, shown)
    if attempts:
        return Occupant("uncommitted", stored)
    return await _nothing_inside(backend, final, stored)


async def _nothing_inside(backend: StorageBackend, final: str, stored: StoredRecord) -> Occupant:
    try:
        if final:
            await backend.stat(final)
    except errors.ObjectNotFoundError:
        return Occupant("absent", stored)
    return Occupant("foreign", stored, "a file")
