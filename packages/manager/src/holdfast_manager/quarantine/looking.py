"""What a look at a step shows, without loading it."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_checkpointer.engine.names import ORBAX_MARKER
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import (
    COMMIT_FILE,
    MetadataError,
    NewerFormatError,
    canonical_json,
    digest_bytes,
)
from holdfast_metadata.orbax import ITEM_METADATA_FILE, STEP_METADATA_FILE, StepMetadata
from holdfast_storage import (
    DamagedCheckpointError,
    IncompleteCheckpointError,
    RecordForbiddenError,
    RecordUnreadableError,
    StorageBackend,
    keys,
)
from holdfast_storage.commit import open_committed, open_plain, read_record

_TREES = ("PyTreeCheckpointHandler", "StandardCheckpointHandler")


@dataclass(frozen=True)
class StepIdentity:
    """What tells one checkpoint at a step from another, and from itself before a repair.

    Attributes:
        attempt: The committed attempt; None without a record that can be read.
        files: A digest of the names, sizes and versions of its files.
    """

    attempt: str | None
    files: str


async def identity_of(backend: StorageBackend, entry: CheckpointMetadata) -> StepIdentity:
    """What is at a step now: the attempt, and every file of it as the store tells them apart."""
    attempt, data = None, ""
    try:
        stored = await read_record(backend, entry.name)
    except RecordUnreadableError:
        pass
    else:
        if stored.record is not None and stored.committed:
            attempt, data = stored.attempt, stored.record.data
    top = keys.join(entry.name, data)
    own = keys.join(top, COMMIT_FILE) if attempt else ""  # changes without the data
    files = [
        [keys.relative(info.key, top), info.size, info.version.token]
        async for info in backend.walk(top)
        if info.key != own
    ]
    return StepIdentity(attempt, digest_bytes(canonical_json({"files": sorted(files)})))


async def find_damage(
    backend: StorageBackend, entry: CheckpointMetadata
) -> DamagedCheckpointError | RecordUnreadableError | None:
    """What a listing or two show: missing or short files, a record or a manifest that is none.

    Raises:
        RecordUnreadableError: That is no damage: a newer holdfast wrote it, or access is refused.
    """
    try:
        if entry.ours:
            await open_committed(backend, entry.name)
        else:
            await require_items(backend, entry)
    except DamagedCheckpointError as error:
        return error
    except RecordUnreadableError as error:
        if proves_damage(entry, error):
            return error
        raise
    return None


def proves_damage(entry: CheckpointMetadata, error: Exception) -> bool:
    """Whether an error says that the bytes of a step are not those that were saved.

    Everything else is the caller's (a target that does not fit, an item that is not there), or
    may pass (the network, memory, access), or wants another holdfast (a newer format).
    """
    if isinstance(error, DamagedCheckpointError):
        return True
    if isinstance(error, RecordUnreadableError):
        newer = isinstance(error.__cause__, NewerFormatError)
        return not newer and not isinstance(error, RecordForbiddenError)
    # Documents of ours have digests: one that reads as saved and is none is a defect of a writer.
    return (
        not entry.ours
        and isinstance(error, MetadataError)
        and not isinstance(error, NewerFormatError)
    )


async def require_items(backend: StorageBackend, entry: CheckpointMetadata) -> None:
    """Refuses a checkpoint without a record of which a part is missing, as after half a copy.

    Whatever wrote it, Orbax or a copy of one of ours that has not come to the record yet: its
    items are those that its own document names.

    Raises:
        IncompleteCheckpointError: Names the first thing that is missing.
    """
    area = open_plain(backend, entry.name)
    names = set(await area.names())
    where = {"key": entry.name, "root": backend.root}
    if STEP_METADATA_FILE not in names:
        if ORBAX_MARKER in names:
            raise IncompleteCheckpointError(
                f"the file {STEP_METADATA_FILE!r} is missing", file=STEP_METADATA_FILE, **where
            )
        return
    data = await area.get(STEP_METADATA_FILE)
    step = StepMetadata.from_bytes(data, source=f"{area.label}/{STEP_METADATA_FILE}")
    recorded = step.item_handlers
    if not isinstance(recorded, dict):
        return
    for item, handler in recorded.items():
        if f"{item}/" not in names:
            raise IncompleteCheckpointError(f"the item {item!r} is missing", file=item, **where)
        tree = str(handler).rpartition(".")[2] in _TREES
        if tree and ITEM_METADATA_FILE not in await area.child(item).names():
            file = f"{item}/{ITEM_METADATA_FILE}"
            raise IncompleteCheckpointError(f"the file {file!r} is missing", file=file, **where)
