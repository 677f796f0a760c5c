"""Which steps are committed in a run's folder."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from holdfast_checkpointer.engine.unmarked import holds_unmarked
from holdfast_manager.place import Place
from holdfast_manager.quarantine import Aside, QuarantinedStep
from holdfast_manager.quarantine.looking import StepIdentity
from holdfast_manager.run_directory.details import reader_of
from holdfast_manager.step_names import NameFormat, StandardNameFormat, step_in
from holdfast_manager.steps import UNREAD, CheckpointMetadata, Unread
from holdfast_metadata import QUARANTINE_DIR
from holdfast_storage import RecordUnreadableError, StorageBackend
from holdfast_storage.commit import list_hints, occupant, survey

_log = logging.getLogger(__name__)
_AT_ONCE = 64
_LIKE_A_STEP = re.compile(r"([^._].*[^0-9])?[0-9]+$")


@dataclass(frozen=True)
class FoundSteps:
    """What a listing of a run's folder shows.

    Attributes:
        committed: Steps that are committed or have a hint, in order; perhaps several folders
            for one, of which the last is it as long as it is good.
        unreadable: Steps whose record cannot be read.
        marks: Whether there may be marks of quarantined steps.
    """

    committed: list[CheckpointMetadata]
    unreadable: list[Aside]
    marks: bool


class StepListing:
    """Lists the steps of one run. Writes nothing.

    Args:
        backend: The storage of the run.
        name_format: How the folders of steps are called.
    """

    def __init__(self, backend: StorageBackend, name_format: NameFormat) -> None:
        self._backend = backend
        self._names_of = name_format
        self._reader = reader_of(backend)

    async def names(self) -> tuple[dict[str, int], frozenset[str]]:
        """Folders named as steps, and names that have a hint: two listings."""
        folders, hints = await self._folders()
        return self._steps_in(folders), hints

    async def _folders(self) -> tuple[Sequence[str], frozenset[str]]:
        listing, hints = await asyncio.gather(
            self._backend.children(""), list_hints(self._backend, "")
        )
        if await self._backend.settle("", listing):
            listing = await self._backend.children("")
        return listing.prefixes, hints

    def _steps_in(self, folders: Sequence[str]) -> dict[str, int]:
        steps = {name: step_in(self._names_of, name) for name in folders}
        return {name: step for name, step in steps.items() if step is not None}

    def _tell_of_other_names(self, folders: Sequence[str], steps: Collection[str]) -> None:
        """A job that does not see its steps would begin anew beside them."""
        likely = [name for name in folders if _LIKE_A_STEP.match(name)]
        if steps or not likely:
            return
        _log.warning(
            "%s has no steps named as %s; folders such as %r may be steps under other names: open "
            "it with the step_name_format (of a CheckpointManager: step_prefix, "
            "step_format_fixed_length) that they were written with",
            self._backend.root,
            self._names_of.build_name(1),
            max(likely),
        )

    async def steps(self) -> FoundSteps:
        """Those that are committed or have a hint, in order."""
        folders, hints = await self._folders()
        steps = self._steps_in(folders)
        self._tell_of_other_names(folders, steps)
        seen = await survey(self._backend, sorted(steps.keys() - hints))
        found = [
            self.describe(steps[name], UNREAD, name)
            for name in (*(steps.keys() & hints), *seen.likely)
        ]
        found += [
            self.describe(steps[entry.name], entry.record.committed_ns, entry.name)
            for entry in seen.committed
        ]
        unreadable = []
        for name, problem in seen.unreadable:
            _log.warning("%s/%s is left alone: %s", self._backend.root, name, problem)
            unreadable.append(self._unreadable(self.describe(steps[name], UNREAD, name), problem))
        found += [self.describe(steps[name], UNREAD, name, ours=False) for name in seen.orbax]
        for name in await self._unmarked(seen.foreign):
            found.append(self.describe(steps[name], UNREAD, name, ours=False, unmarked=True))
        return FoundSteps(self._in_order(found), unreadable, QUARANTINE_DIR in folders)

    def _unreadable(self, entry: CheckpointMetadata, problem: str) -> Aside:
        told = QuarantinedStep(entry.step, entry.path, "unreadable", problem)
        return Aside(entry, told, StepIdentity(None, ""))

    def describe(
        self,
        step: int,
        committed_ns: int | Unread | None,
        name: str,
        *,
        ours: bool = True,
        unmarked: bool = False,
    ) -> CheckpointMetadata:
        """What is known of a committed step; the rest is read when asked for."""
        path = Place(self._backend.root) / name
        return CheckpointMetadata(
            step, path, name, committed_ns, self._reader, ours=ours, unmarked=unmarked
        )

    async def further(
        self, entries: Sequence[CheckpointMetadata]
    ) -> dict[str, list[CheckpointMetadata]]:
        """Checkpoints of the same steps in folders of other names, by the name that is listed.

        Only where a format reads several names of one step.
        """
        if not entries or isinstance(self._names_of, StandardNameFormat):
            return {}
        listed = {entry.step: entry.name for entry in entries}
        names, _ = await self.names()
        found: dict[str, list[CheckpointMetadata]] = {}
        for name, step in sorted(names.items()):
            if listed.get(step, name) != name and (other := await self._found(name, step)):
                found.setdefault(listed[step], []).append(other)
        return found

    async def _found(self, name: str, step: int) -> CheckpointMetadata | None:
        try:
            kind = (await occupant(self._backend, name)).kind
        except RecordUnreadableError as error:
            _log.warning("%s/%s is left alone: %s", self._backend.root, name, error)
            return None
        if kind in ("ours", "orbax"):
            return self.describe(step, UNREAD, name, ours=kind == "ours")
        if await holds_unmarked(self._backend, name):
            return self.describe(step, UNREAD, name, ours=False, unmarked=True)
        return None

    async def _unmarked(self, names: Sequence[str]) -> list[str]:
        """Those that Orbax wrote before it marked its checkpoints."""
        limit = asyncio.Semaphore(_AT_ONCE)

        async def look(name: str) -> bool:
            async with limit:
                return await holds_unmarked(self._backend, name)

        answers = await asyncio.gather(*map(look, names))
        return [name for name, orbax in zip(names, answers, strict=True) if orbax]

    def _in_order(self, found: Iterable[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """By step; of several folders for one, that which is it comes last."""
        by_name = sorted(found, key=lambda entry: entry.name, reverse=True)
        return sorted(by_name, key=lambda one: (one.step, one.name == self._written(one.step)))

    def _written(self, step: int) -> str:
        return self._names_of.build_name(step)

    def one_for_each_step(self, found: Sequence[CheckpointMetadata]) -> list[CheckpointMetadata]:
        """The last of each step; of several folders for one, that of the written format."""
        chosen = {entry.step: entry for entry in found}
        for entry in found:
            taken = chosen[entry.step]
            if taken is not entry:
                where = self._backend.root
                _log.warning(
                    "%s has two folders for step %s; taking %s", where, entry.step, taken.path
                )
        return list(chosen.values())
