"""What is committed in many folders at once, for less than a read of each record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_metadata import COMMIT_FILE, MANIFEST_FILE
from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.occupancy import judge_names, occupant
from holdfast_storage.commit.opening import CommittedEntry, read_records
from holdfast_storage.commit.record import StoredRecord


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found, by last segments.

    Attributes:
        likely: Hold a record and a manifest of ours beside it; the record was not read.
        committed: The record says so.
        unreadable: Names whose record cannot be read, and why.
        orbax: Checkpoints that Orbax wrote.
        foreign: Hold something else.
    """

    likely: tuple[str, ...]
    committed: tuple[CommittedEntry, ...]
    unreadable: tuple[tuple[str, str], ...]
    orbax: tuple[str, ...]
    foreign: tuple[str, ...]


async def survey(backend: StorageBackend, finals: Sequence[str]) -> Survey:
    """Looks into each of `finals` once; reads the records that this does not spare. Writes nothing.

    A rename publishes record and manifest together, and an un-commit takes both away. So
    where no hints are kept, the two names in one folder are as good as a hint: whoever acts
    on the checkpoint reads its record. A record alone may be a tombstone, and is read.
    """
    if not finals:
        return Survey((), (), (), (), ())
    names = await backend.names_in(finals)
    likely: list[str] = []
    unknown: list[str] = []
    orbax: list[str] = []
    foreign: list[str] = []
    for final in finals:
        found = names.get(final)
        if found is None or COMMIT_FILE in found.objects:
            whole = found is not None and MANIFEST_FILE in found.objects
            (likely if whole and not backend.hints.round_trips else unknown).append(final)
            continue
        seen = judge_names(StoredRecord(), found, by_file=backend.orbax_commits_by_file)
        if seen is not None and seen.kind == "orbax":
            orbax.append(keys.leaf(final))
        elif seen is not None and seen.kind == "foreign" and not seen.unfinished:
            foreign.append(keys.leaf(final))
    read = await read_records(backend, unknown)
    orbax += [
        keys.leaf(final)
        for final in unknown  # a record that only fences attempts hides nothing of Orbax's
        if keys.leaf(final) in read.others and (await occupant(backend, final)).kind == "orbax"
    ]
    return Survey(
        tuple(map(keys.leaf, likely)),
        read.committed,
        read.unreadable,
        tuple(orbax),
        tuple(foreign),
    )
