"""Loading a step of a run; and an older one where the newest is damaged."""

from __future__ import annotations

import asyncio
import enum
import logging
import traceback
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.errors import NoGoodStepError, StepNotFoundError
from holdfast_manager.quarantine import Aside, QuarantinedStep
from holdfast_manager.quarantine.looking import identity_of, proves_damage, require_items
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata
from holdfast_storage import (
    CheckpointChangedError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
)

_log = logging.getLogger(__name__)
_LOOKS = 5
_NO_PROOF = (
    "while loading step {step} ({path}) with fallback=True; this is no proof that the step is "
    "damaged, so no older one was loaded in its place"
)
Read = Callable[[str], Coroutine[Any, Any, Any]]


@dataclass(frozen=True)
class LoadReport:
    """Which step was loaded, and which newer ones were not.

    Attributes:
        step: The step that was loaded: where a training goes on.
        path: Its URL or path.
        skipped: The newer steps that a load with `fallback=True` passed over, the newest first;
            also another folder of the step, if it is there under two names.
    """

    step: int
    path: str
    skipped: tuple[QuarantinedStep, ...] = ()

    def __str__(self) -> str:
        if not self.skipped:
            return f"loaded step {self.step}"
        lines = "".join(f"\n  {step}" for step in self.skipped)
        return f"loaded step {self.step}; newer steps were skipped:{lines}"


class LoadResponse(AsyncResponse[Any]):
    """The handle of a load of a run: what `AsyncResponse` is, and a report.

    Attributes:
        report: Which step was loaded; None before the load has succeeded.
    """

    def __init__(
        self,
        work: Coroutine[Any, Any, tuple[Any, LoadReport]],
        *,
        what: str,
        deadline: float | None,
        told: Callable[[LoadReport], None],
    ) -> None:
        self.report: LoadReport | None = None

        async def run() -> Any:
            value, self.report = await work
            told(self.report)
            return value

        super().__init__(run(), what=what, deadline=deadline)


class Not(enum.Enum):
    """Why a step was not loaded, where that is no error."""

    DAMAGED = "two readings say so"
    THERE = "it was removed meanwhile, which is no damage"


@dataclass
class Search:
    """How far a load with fallback has come."""

    start: int | None
    tried: set[str] = field(default_factory=set)
    skipped: list[Aside] = field(default_factory=list)
    found: list[tuple[Aside, Exception]] = field(default_factory=list)  # in this load
    further: list[CheckpointMetadata] = field(default_factory=list)  # other folders of those


class Loading:
    """Loads steps of one run.

    Args:
        known: Its steps.
        run: The run.
        quarantine: Where damaged steps go.
    """

    def __init__(self, known: KnownSteps, run: RunDirectory, quarantine: Quarantine) -> None:
        self._known = known
        self._run = run
        self._quarantine = quarantine
        self.last: LoadReport | None = None

    def start(
        self, number: int | None, read: Read, *, fallback: bool, deadline: float | None
    ) -> LoadResponse:
        """Loads in the background.

        Args:
            number: The step; None is the newest.
            read: Loads what is wanted from the folder of a step.
            fallback: Load an older step if this one is damaged.
            deadline: For one step, in seconds.

        Raises:
            StepNotFoundError: There is no such step, and `fallback` is false or the run empty.
        """
        if not fallback:
            entry = self.resolve(number)
            work, what = self._load_one(entry, read), f"the load from {entry.path}"
            return LoadResponse(work, what=what, deadline=deadline, told=self._tell)
        work = self._begin_fallback(number, read, deadline)
        what = f"the load from {self._run.label}"
        return LoadResponse(work, what=what, deadline=None, told=self._tell)

    def resolve(self, number: int | None) -> CheckpointMetadata:
        """The step to load; None is the latest. Raises as `KnownSteps.resolve`."""
        return self._known.resolve(number)

    def _begin_fallback(
        self, number: int | None, read: Read, deadline: float | None
    ) -> Coroutine[Any, Any, tuple[Any, LoadReport]]:
        self._require_something(number)
        return self._fall_back(Search(number), read, deadline)

    def _tell(self, report: LoadReport) -> None:
        self.last = report

    async def _load_one(self, entry: CheckpointMetadata, read: Read) -> tuple[Any, LoadReport]:
        aside = self._known.aside(entry.step)
        if aside is not None:
            _log.warning("%s is loaded although %s", entry.path, aside.told)
        try:
            return await read(entry.name), LoadReport(entry.step, entry.path)
        except DamagedCheckpointError as error:
            error.add_note("fallback=True loads the newest step that is whole")
            raise

    def _require_something(self, number: int | None) -> None:
        """A step that is asked for by its number is there, damaged or not."""
        for look in (True, False):
            found = self._next(Search(number))
            if found is not None and number in (None, found.step):
                return
            if look:
                self._known.reload()  # another process may have committed since
        raise StepNotFoundError(number, self._run.label, self._committed())

    def _committed(self) -> list[int]:
        return [entry.step for entry in self._known.all()]

    def _next(self, search: Search) -> CheckpointMetadata | None:
        """The newest step that was not tried, damaged ones included."""
        aside = [one.entry for one in self._known.all_aside()]
        entries = [*self._known.all(), *aside, *search.further]
        left = [
            entry
            for entry in entries
            if entry.name not in search.tried
            and (search.start is None or entry.step <= search.start)
        ]
        return max(left, key=lambda entry: entry.step, default=None)

    async def _fall_back(
        self, search: Search, read: Read, deadline: float | None
    ) -> tuple[Any, LoadReport]:
        """Loads the newest step that can be loaded whole.

        A step is set aside only once an older one was loaded: a process that can read
        nothing says nothing about steps.
        """
        while (entry := await self._next_to_try(search)) is not None:
            found = await self._try(entry, read, deadline, search)
            if found is Not.THERE:
                await self._known.refresh()
            elif found is not Not.DAMAGED:
                return found, await self._report(entry, search)
        raise self._given_up(search)

    async def _next_to_try(self, search: Search) -> CheckpointMetadata | None:
        """The newest step that was not tried, and of which nothing bad is known."""
        await self._look_beside(search)
        while (entry := self._next(search)) is not None:
            search.tried.add(entry.name)
            told = await self._known_damage(entry)
            if told is None:
                break
            search.skipped.append(told)
            await self._look_beside(search)
        return entry

    async def _look_beside(self, search: Search) -> None:
        """A damaged step may be there under another name as well."""
        skipped = [one.entry for one in search.skipped]
        found = await self._run.further_folders(skipped)
        search.further = [one for folders in found.values() for one in folders]

    async def _known_damage(self, entry: CheckpointMetadata) -> Aside | None:
        """What is known of a step already, and still true; what may have passed is not."""
        aside = self._known.aside(entry.step)
        if aside is None or aside.told.problem != "damaged":
            return None
        return await self._run.marks.judge(entry)

    async def _try(
        self, entry: CheckpointMetadata, read: Read, deadline: float | None, search: Search
    ) -> Any:
        """Loads one step, or says why not.

        Raises:
            Exception: Anything that is no proof of damage; it names the step.
        """
        before: Aside | None = None
        for _ in range(_LOOKS):
            try:
                return await self._within(deadline, entry, read)
            except Exception as error:
                if not proves_damage(entry, error):
                    if await self._is_gone(entry, error):
                        return Not.THERE
                    error.add_note(_NO_PROOF.format(step=entry.step, path=entry.path))
                    raise
                damage = _without_arrays(error)
            told = QuarantinedStep.seen(entry, damage)
            now = Aside(entry, told, await identity_of(self._run.backend, entry))
            if before is not None and _is_same(before, now):
                search.skipped.append(now)
                search.found.append((now, damage))
                return Not.DAMAGED
            before = now
        raise CheckpointChangedError(
            f"step {entry.step} was replaced again and again while it was loaded",
            key=entry.name,
            root=self._run.label,
        )

    async def _within(self, deadline: float | None, entry: CheckpointMetadata, read: Read) -> Any:
        try:
            async with asyncio.timeout(deadline) as limit:
                if not entry.ours:
                    await require_items(self._run.backend, entry)
                return await read(entry.name)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise TimeoutError(
                f"the load from {entry.path} took longer than {deadline} s"
            ) from error

    async def _is_gone(self, entry: CheckpointMetadata, error: Exception) -> bool:
        said = isinstance(error, CheckpointNotFoundError)
        return said and not await self._run.is_there(entry)

    async def _report(self, entry: CheckpointMetadata, search: Search) -> LoadReport:
        skipped = tuple(one.told for one in search.skipped if one.entry.step >= entry.step)
        report = LoadReport(entry.step, entry.path, skipped)
        for aside, error in search.found:
            await self._quarantine.keep(aside, error)
        if any(one.entry.step == entry.step for one in search.skipped):
            await self._known.refresh()  # the folder that was loaded is it now
        if skipped:
            _log.warning("%s: %s", self._run.label, report)
        return report

    def _given_up(self, search: Search) -> Exception:
        if not search.skipped:
            return StepNotFoundError(search.start, self._run.label, self._committed())
        told = NoGoodStepError(self._run.label, [one.told for one in search.skipped])
        causes = [error for _, error in search.found]
        several = len(causes) > 1
        told.__cause__ = (
            ExceptionGroup("of the steps", causes) if several else next(iter(causes), None)
        )
        return told


def _is_same(before: Aside, now: Aside) -> bool:
    """Whether two readings found damage in one and the same thing.

    Of a copy that goes on, each look sees more, and still not all.
    """
    if now.told.problem == before.told.problem == "incomplete":
        return now.identity.attempt == before.identity.attempt
    return now.identity == before.identity


def _without_arrays(error: Exception) -> Exception:
    """The error without what its frames hold: half a model would stay in memory with it."""
    told: BaseException | None = error
    while told is not None:
        traceback.clear_frames(told.__traceback__)
        told = told.__cause__ or told.__context__
    return error
