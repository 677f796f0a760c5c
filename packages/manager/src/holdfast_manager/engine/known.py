"""The committed steps of a run as this process knows them: the good ones, and the others."""

from __future__ import annotations

import threading
from typing import SupportsIndex

from holdfast_manager.described import DescribedCheckpoint
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.quarantine import Aside
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata, check_step
from holdfast_storage.loop import get_loop

_Change = tuple[int, CheckpointMetadata | Aside | None]  # committed, set aside, or gone


class KnownSteps:
    """A list that changes with own commits and removals, and with `reload`. Thread-safe.

    Attributes:
        follows: Whether another process of the job says what there is, so that this one does
            not list the storage for itself.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._steps: dict[int, CheckpointMetadata] = {}
        self._in_order: list[CheckpointMetadata] | None = None  # sorted when it is asked for
        self._aside: dict[int, Aside] = {}
        self._lock = threading.Lock()
        self._while_listing: list[list[_Change]] = []  # for each listing under way
        self._clock = 0  # counts own commits
        self._committed: dict[int, int] = {}  # when a step was, by that clock
        self._gone: set[int] = set()  # removed elsewhere before this process took them in
        self.follows = False

    def all(self) -> list[CheckpointMetadata]:
        """In order of the steps."""
        with self._lock:
            return list(self._ordered())

    @property
    def latest(self) -> CheckpointMetadata | None:
        """The newest, or None."""
        with self._lock:
            return next(reversed(self._ordered()), None)

    def _ordered(self) -> list[CheckpointMetadata]:
        # A training loop asks at every step, and a run may have thousands.
        if self._in_order is None:
            self._in_order = [self._steps[step] for step in sorted(self._steps)]
        return self._in_order

    def reload(self) -> None:
        """Lists the storage again, to see what other processes committed or removed."""
        get_loop().run(self.refresh())

    async def refresh(self) -> None:
        """As `reload`, on the storage loop."""
        meanwhile: list[_Change] = []
        with self._lock:
            self._while_listing.append(meanwhile)
            began = self._clock
        try:
            listed = await self._run.look()
        except BaseException:
            with self._lock:
                self._ended(meanwhile)
            raise
        with self._lock:
            self._ended(meanwhile)
            self._steps = {entry.step: entry for entry in listed.steps}
            self._in_order = None
            self._aside = {one.entry.step: one for one in listed.aside}
            for entry in (*listed.steps, *(one.entry for one in listed.aside)):
                entry.seen = began
            for step, change in meanwhile:  # the listing may be from before these
                self._take(step, change)

    def add(self, entry: CheckpointMetadata) -> None:
        """Takes in a step that was committed."""
        with self._lock:
            if entry.step in self._gone:
                self._gone.discard(entry.step)
                return
            self._clock += 1
            self._committed[entry.step] = entry.seen = self._clock
            self._change(entry.step, entry)

    def adopt(self, found: CheckpointMetadata | Aside) -> None:
        """Takes in what another process of the job knows of a step."""
        entry = found.entry if isinstance(found, Aside) else found
        with self._lock:
            entry.seen = self._clock
            self._change(entry.step, found)

    def forget(self, step: int) -> None:
        """Forgets a step that another process of the job has removed.

        It may have been quicker than this one, which is still to take the step in.
        """
        with self._lock:
            if step not in self._steps and step not in self._aside:
                self._gone.add(step)
            self._change(step, None)

    def expect(self, step: int) -> None:
        """A save of a step begins: that one of its number was removed before means nothing."""
        with self._lock:
            self._gone.discard(step)

    def committed_since(self, clock: int) -> tuple[list[int], int]:
        """The steps that this process has committed since a time of its clock; and its time."""
        with self._lock:
            return [s for s, when in self._committed.items() if when > clock], self._clock

    def set_aside(self, aside: Aside) -> None:
        """Takes a step out of the good ones."""
        step = aside.entry.step
        with self._lock:
            if self._steps.get(step, aside.entry) == aside.entry:
                self._change(step, aside)

    def aside(self, step: int) -> Aside | None:
        """What is said of a step that is set aside."""
        with self._lock:
            return self._aside.get(step)

    def what_is_known(self, step: int) -> CheckpointMetadata | Aside | None:
        """A step, good or set aside; None if there is none."""
        with self._lock:
            return self._steps.get(step) or self._aside.get(step)

    def all_aside(self) -> list[Aside]:
        """The steps that are there and not good, in order."""
        with self._lock:
            return [self._aside[step] for step in sorted(self._aside)]

    def drop(self, entry: CheckpointMetadata) -> None:
        """Forgets a step, unless it was committed here after the entry was made."""
        with self._lock:
            # Not by identity: a listing makes a new entry of the same commit.
            if self._committed.get(entry.step, 0) <= entry.seen:
                self._change(entry.step, None)

    def _ended(self, listing: list[_Change]) -> None:
        # By identity: two listings may have seen the same changes.
        self._while_listing = [one for one in self._while_listing if one is not listing]

    def _change(self, step: int, change: CheckpointMetadata | Aside | None) -> None:
        self._take(step, change)
        for meanwhile in self._while_listing:
            meanwhile.append((step, change))

    def _take(self, step: int, change: CheckpointMetadata | Aside | None) -> None:
        self._in_order = None
        self._steps.pop(step, None)
        self._aside.pop(step, None)
        if isinstance(change, Aside):
            self._aside[step] = change
        elif change is not None:
            self._steps[step] = change

    async def confirm(self, entry: CheckpointMetadata, *, writing: bool = True) -> bool:
        """Whether a listed step is committed; if only a stale hint said so, both go."""
        if await self._run.is_committed(entry):
            return True
        self.drop(entry)
        if writing:
            await self._run.note_absence(entry)
        return False

    def is_committed(self, step: int) -> bool:
        """Whether a step is committed, as far as is known here."""
        with self._lock:
            entry = self._steps.get(step)
        return entry is not None and get_loop().run(self.confirm(entry))

    def resolve(self, number: int | None) -> CheckpointMetadata:
        """The step that is meant; None is the latest. Writes nothing.

        Raises:
            StepNotFoundError: It is not committed; the message lists the steps that are.
        """
        found = self._find(number)
        if number is None and found is not None:
            return found  # being the latest, its record has been read
        if found is None:
            found = self._look_for(number)
        if found is not None and not get_loop().run(self._run.is_committed(found)):
            self.drop(found)
            found = None
        if found is None:
            known = [entry.step for entry in self.all()]
            raise StepNotFoundError(number, self._run.label, known)
        return found

    def _look_for(self, number: int | None) -> CheckpointMetadata | None:
        """Looks in the storage: another job may have committed since."""
        if not self.follows:
            self.reload()
            return self._find(number)
        listed = get_loop().run(self._run.look()).steps
        return next((entry for entry in reversed(listed) if number in (None, entry.step)), None)

    def name_for(self, step: int) -> str:
        """The folder in which a step is, or would be saved."""
        with self._lock:
            entry = self._steps.get(step)
            if entry is None and step in self._aside:
                entry = self._aside[step].entry
        return self._run.build_name(step) if entry is None else entry.name

    def _find(self, step: int | None) -> CheckpointMetadata | None:
        if step is None:
            return self.latest
        with self._lock:
            entry = self._steps.get(step)
            aside = self._aside.get(step)
        if entry is None and aside is not None and aside.told.problem != "unreadable":
            return aside.entry  # by its number it can be had
        return entry


def step_of(step: SupportsIndex | CheckpointMetadata | DescribedCheckpoint) -> int:
    """The number of a step, however it was said."""
    if isinstance(step, CheckpointMetadata | DescribedCheckpoint):
        return step.step
    return check_step(step)
