"""Checking a whole checkpoint: every file against the manifest, every chunk's digest."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.options import Context
from holdfast_metadata.orbax import ITEM_METADATA_FILE
from holdfast_storage import StorageBackend, StorageError
from holdfast_storage.commit import occupant, unless_changed
from holdfast_storage.commit import verify as verify_files


@dataclass(frozen=True)
class VerifyReport:
    """What a verification found. True in a condition if nothing is damaged.

    Attributes:
        ok: Nothing differs from what was saved.
        problems: Each damage in words, with file and leaf.
        files: How many files were checked.
        arrays: How many arrays were read whole.
        verified: "yes" if digests were compared; "no" for Orbax's checkpoints, which have
            none: there only readability was checked.
    """

    ok: bool
    problems: tuple[str, ...]
    files: int
    arrays: int
    verified: str

    def __bool__(self) -> bool:
        return self.ok


async def verify_checkpoint(backend: StorageBackend, final: str, context: Context) -> VerifyReport:
    """Verifies one checkpoint, holdfast's or Orbax's.

    Raises:
        CheckpointDeletedError: It was deleted meanwhile, which is no damage.
    """
    return await unless_changed(backend, final, lambda: _verify(backend, final, context))


async def _verify(backend: StorageBackend, final: str, context: Context) -> VerifyReport:
    problems: list[str] = []
    files = 0
    ours = (await occupant(backend, final)).kind != "orbax"
    if ours:
        report = await verify_files(backend, final)
        problems += report.problems
        files = report.files
        if problems:
            return VerifyReport(False, tuple(problems), files, 0, "yes")

    async def body(stored: StoredCheckpoint) -> tuple[int, list[str]]:
        return await _verify_items(stored, context)

    arrays, found = await read_checkpoint(backend, final, body)
    problems += found
    return VerifyReport(not problems, tuple(problems), files, arrays, "yes" if ours else "no")


async def _verify_items(stored: StoredCheckpoint, context: Context) -> tuple[int, list[str]]:
    handler = PyTreeCheckpointHandler()
    arrays, problems = 0, []
    for name in stored.items:
        area = stored.item_area(name)
        if ITEM_METADATA_FILE not in await area.names():
            continue
        try:
            count, found = await handler.verify(area, context)
        except (StorageError, ValueError) as error:
            problems.append(f"{name or 'the item'}: {error}")
            continue
        arrays += count
        problems += found
    return arrays, problems
