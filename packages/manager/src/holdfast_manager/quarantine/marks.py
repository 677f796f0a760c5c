"""The marks of quarantined steps: one small object each, true of one attempt only."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Sequence

from holdfast_manager.quarantine.looking import StepIdentity, find_damage, identity_of
from holdfast_manager.quarantine.steps import Aside, QuarantinedStep
from holdfast_manager.steps import CheckpointMetadata
from holdfast_metadata import QUARANTINE_DIR, MetadataError, QuarantineMark
from holdfast_storage import (
    IfAbsent,
    ObjectExistsError,
    ObjectNotFoundError,
    RecordUnreadableError,
    StorageBackend,
    StoragePermissionError,
    keys,
)
from holdfast_storage.commit import identity as writers
from holdfast_storage.commit import read_record

_log = logging.getLogger(__name__)


class QuarantineMarks:
    """Reads, writes and removes the marks of one run.

    Args:
        backend: The storage of the run.
    """

    def __init__(self, backend: StorageBackend) -> None:
        self._backend = backend
        self._remembered: dict[str, Aside] = {}  # by the step's folder

    async def names(self) -> list[str]:
        """The folders of the steps that have a mark, true or not. Writes nothing."""
        try:
            listing = await self._backend.children(QUARANTINE_DIR)
        except StoragePermissionError as error:
            _log.warning("what is quarantined in %s is not known: %s", self._backend.root, error)
            return []
        return sorted(keys.leaf(info.key) for info in listing.objects)

    async def read(self, name: str) -> QuarantineMark | None:
        """The mark of a step's folder, true or not; None if there is none that can be read."""
        key = _key(name)
        try:
            return QuarantineMark.from_bytes(await self._backend.get(key), source=key)
        except ObjectNotFoundError:
            return None
        except (MetadataError, StoragePermissionError) as error:
            _log.warning("%s in %s says nothing: %s", key, self._backend.root, error)
            return None

    async def with_marks(self, aside: Sequence[Aside], *, marks: bool) -> list[Aside]:
        """Steps that a look has set aside, with what their marks say where one is true."""
        if not marks or not aside:
            return list(aside)
        marked = await asyncio.gather(*(self.judge(one.entry) for one in aside))
        return [said or one for said, one in zip(marked, aside, strict=True)]

    async def split(
        self, steps: Sequence[CheckpointMetadata], *, marks: bool
    ) -> tuple[list[CheckpointMetadata], list[Aside]]:
        """Tells steps that are set aside from the others; both in order.

        Args:
            steps: Committed steps.
            marks: Whether there may be marks; if not, none is looked for.
        """
        doubtful = {*(await self.names() if marks else ()), *self._remembered}
        if not doubtful:
            return list(steps), []
        found = await asyncio.gather(*(self.judge(one) for one in steps if one.name in doubtful))
        aside = {one.entry.name: one for one in found if one is not None}
        return [entry for entry in steps if entry.name not in aside], list(aside.values())

    def remember(self, aside: Aside) -> None:
        """What this process has found itself holds for it, marked or not."""
        self._remembered[aside.entry.name] = aside

    async def judge(self, entry: CheckpointMetadata) -> Aside | None:
        """What is said of a step, if it is true of what is there now.

        What was found in another attempt is not, nor in files that have changed since; nor
        that files are missing once they are there, as when a copy went on.
        """
        found = self._remembered.get(entry.name) or await self._marked(entry)
        if found is None:
            return None
        if await is_true_still(self._backend, entry, found):
            return found
        self._remembered.pop(entry.name, None)
        return None

    async def _marked(self, entry: CheckpointMetadata) -> Aside | None:
        mark = await self.read(entry.name)
        if mark is None:
            return None
        identity = StepIdentity(mark.attempt, mark.files)
        return Aside(entry, QuarantinedStep.marked(entry, mark), identity, marked=True)

    async def put(self, aside: Aside, error: Exception) -> bool:
        """Marks a step, and says so; not if another attempt stands there, or Orbax's checkpoint.

        Two may do so at once; a mark that names an earlier attempt is replaced.

        Raises:
            StorageError: The mark could not be written.
        """
        entry, told, attempt = aside.entry, aside.told, aside.identity.attempt
        if not await self._is_of_what_stands_there(aside):
            return False
        mark = QuarantineMark(
            attempt=attempt,
            files=aside.identity.files,
            problem=told.problem,
            error=type(error).__name__,
            reason=str(error),
            file=told.file,
            leaf=told.leaf,
            by=writers.new_mark(uuid.uuid4().hex, "quarantine"),
        )
        key, data = _key(entry.name), mark.to_bytes()
        try:
            await self._backend.put(key, data, condition=IfAbsent())
        except ObjectExistsError:
            there = await self.read(entry.name)
            if there is None or StepIdentity(there.attempt, there.files) != aside.identity:
                await self._backend.put(key, data)
        return True

    async def _is_of_what_stands_there(self, aside: Aside) -> bool:
        attempt = aside.identity.attempt
        try:
            stored = await read_record(self._backend, aside.entry.name)
        except RecordUnreadableError:
            return attempt is None and aside.told.problem == "unreadable"
        return attempt is not None and stored.attempt == attempt

    async def remove(self, name: str, *, unless: str | None = None) -> None:
        """Removes what is said of a folder; not a mark that speaks of the attempt `unless`."""
        self._remembered.pop(name, None)
        mark = await self.read(name)
        if mark is not None and mark.attempt != unless:
            await self._backend.delete(_key(name))

    async def tidy(self, in_trash: Callable[[], Awaitable[Collection[str]]]) -> None:
        """Removes marks of attempts that are neither committed nor in the trash.

        For the run's writer.
        """
        kept: Collection[str] | None = None
        for name in await self.names():
            mark = await self.read(name)
            if mark is None:
                continue  # not ours to judge: a newer holdfast may have written it
            try:
                stored = await read_record(self._backend, name)
            except RecordUnreadableError:
                continue
            if stored.attempt is not None and stored.attempt == mark.attempt:
                continue
            kept = await in_trash() if kept is None else kept
            if mark.attempt not in kept:
                await self._backend.delete(_key(name))


async def is_true_still(backend: StorageBackend, entry: CheckpointMetadata, said: Aside) -> bool:
    """Whether what was said of a step is true of what is there now."""
    now = await identity_of(backend, entry)
    if said.told.problem != "incomplete":
        return now == said.identity
    return now.attempt == said.identity.attempt and await find_damage(backend, entry) is not None


def _key(name: str) -> str:
    return keys.join(QUARANTINE_DIR, name)
