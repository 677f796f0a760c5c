"""What a run tells of steps that cannot be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import SupportsIndex

from holdfast_manager.described import DescribedCheckpoint
from holdfast_manager.engine.fallback import LoadReport
from holdfast_manager.engine.known import step_of
from holdfast_manager.engine.run import Run
from holdfast_manager.quarantine import QuarantinedStep
from holdfast_manager.steps import CheckpointMetadata
from holdfast_storage.loop import get_loop

Step = SupportsIndex | CheckpointMetadata | DescribedCheckpoint


class Reports:
    """The part of a `Checkpointer` that tells what was passed over."""

    _run: Run

    def _check_may_write(self) -> None:
        """Refuses where nothing is to be written."""

    @property
    def last_load(self) -> LoadReport | None:
        """Which step the load that ended last has loaded, and what it passed over.

        None before the first. Where several threads load with a `Checkpointer`, ask the
        response of `load_async`.
        """
        return self._run.loading.last

    @property
    def quarantined(self) -> Mapping[int, QuarantinedStep]:
        """The steps that are there and cannot be loaded whole, by step, as of the last look.

        Those that a load with `fallback=True` has found, in whichever process, and newest
        steps of which files are missing. They are neither `latest` nor in `checkpoints`, and no
        policy counts them; `explain` says when they go. `load(step)` tries one all the same,
        `delete(step)` removes it, and `save(step, ...)` replaces it without `overwrite=True`.
        Only a step whose commit record cannot be read is never replaced or removed.

        A process marks what it finds in the run, unless another job is writing to it; then
        the step is passed over in this process alone. A step saved anew is not quarantined,
        nor one whose missing files have come.
        """
        return {one.entry.step: one.told for one in self._run.known.all_aside()}

    def unquarantine(self, step: Step) -> None:
        """Makes a quarantined step one like the others, after its files were repaired.

        If it is damaged still, the next load with `fallback=True` quarantines it again.

        Raises:
            StepNotQuarantinedError: It is not quarantined; the message lists those that are.
        """
        self._check_may_write()
        number = step_of(step)
        release = self._run.quarantine.release
        self._run.do(f"unquarantine({number})", lambda: get_loop().run(release(number)))
