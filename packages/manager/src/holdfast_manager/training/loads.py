"""How a run is loaded: the newest step, one by its number, or the newest that is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, SupportsIndex

from holdfast_checkpointer import checkpointables as several
from holdfast_checkpointer import functions, options
from holdfast_checkpointer.engine.names import AUTO
from holdfast_checkpointer.metadata import CheckpointMetadata as StoredMetadata
from holdfast_manager.described import DescribedCheckpoint
from holdfast_manager.engine.fallback import LoadReport, LoadResponse, Read
from holdfast_manager.engine.known import step_of
from holdfast_manager.engine.run import Run
from holdfast_manager.quarantine import QuarantinedStep
from holdfast_manager.steps import CheckpointMetadata
from holdfast_storage.loop import get_loop

Step = SupportsIndex | CheckpointMetadata | DescribedCheckpoint


class Loads:
    """The part of a `Checkpointer` that loads, and tells what cannot be loaded."""

    _run: Run
    _context: options.Context

    def load(
        self,
        step: Step | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = AUTO,
        fallback: bool = False,
        **restore: Any,
    ) -> Any:
        """Loads a step, by default the latest; see `holdfast.load` for the other arguments.

        `last_load` says afterwards which step it was.

        Args:
            step: The step; by default the newest.
            abstract_state: The target, as `holdfast.load` takes it.
            checkpointable_name: The item.
            fallback: If the step is damaged or not whole, load the newest older one that can be
                loaded whole. Only what is proven to be damage is passed over: bytes or sizes
                that differ from what was saved, files that are missing, a record that is no
                record, each seen twice. Anything else raises at once: a target that does not
                fit, an item that is not there, refused access, a network that fails.

                What was passed over is logged, is in `last_load`, and is quarantined, once an
                older step was loaded: see `quarantined`.
            **restore: Further arguments of `holdfast.load`.

        Raises:
            StepNotFoundError: It is not committed, or with `fallback` the run has no step at
                all; the message lists the steps that are.
            NoGoodStepError: With `fallback`: there are steps, and each is damaged. It is no
                `FileNotFoundError`: do not begin anew.
            DamagedCheckpointError: Without `fallback`: the step is damaged.

        Examples:
            >>> import holdfast as hf
            >>> with hf.training.Checkpointer("memory://doc/load") as run:
            ...     saved = [run.save(step, {"step": step}) for step in (1, 2)]
            ...     state = run.load(fallback=True)
            >>> state, run.last_load.step, run.last_load.skipped
            ({'step': 2}, 2, ())
        """
        return self.load_async(
            step,
            abstract_state,
            checkpointable_name=checkpointable_name,
            fallback=fallback,
            **restore,
        ).result()

    def load_async(
        self,
        step: Step | None = None,
        abstract_state: Any = None,
        *,
        checkpointable_name: str = AUTO,
        fallback: bool = False,
        **restore: Any,
    ) -> LoadResponse:
        """Loads in the background; see `load`. An unknown step raises here.

        The response's `report` says which step was loaded.
        """
        read = functions.state_reader(
            self._run.directory.backend,
            abstract_state,
            checkpointable_name=checkpointable_name,
            context=self._context,
            **restore,
        )
        return self._load(step, read, fallback=fallback)

    def load_checkpointables(
        self,
        step: Step | None = None,
        abstract_checkpointables: Mapping[str, Any] | StoredMetadata | None = None,
        *,
        fallback: bool = False,
    ) -> dict[str, Any]:
        """Loads the items of a step, by default the latest; see `holdfast.load_checkpointables`.

        Args:
            step: The step; by default the newest.
            abstract_checkpointables: The items, as `holdfast.load_checkpointables` takes them.
            fallback: As in `load`. An object that loads itself may have begun with the damaged
                step before it is loaded from an older one.

        Raises:
            StepNotFoundError: It is not committed; the message lists the steps that are.
            NoGoodStepError: As in `load`.
            KeyError: The step has no such item.
        """
        response = self.load_checkpointables_async(
            step, abstract_checkpointables, fallback=fallback
        )
        return dict(response.result())

    def load_checkpointables_async(
        self,
        step: Step | None = None,
        abstract_checkpointables: Mapping[str, Any] | StoredMetadata | None = None,
        *,
        fallback: bool = False,
    ) -> LoadResponse:
        """Loads in the background; see `load_checkpointables`. An unknown step raises here."""
        read = several.items_reader(
            self._run.directory.backend, abstract_checkpointables, self._context
        )
        return self._load(step, read, fallback=fallback)

    @property
    def last_load(self) -> LoadReport | None:
        """Which step the load that ended last has loaded, and what it passed over.

        None before the first. Where several threads load, ask the response of `load_async`.
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
        number = step_of(step)
        release = self._run.quarantine.release
        self._run.do(f"unquarantine({number})", lambda: get_loop().run(release(number)))

    def _load(self, step: Step | None, read: Read, *, fallback: bool) -> LoadResponse:
        deadline = self._context.asynchronous.timeout_secs
        return self._run.loading.start(number_of(step), read, fallback=fallback, deadline=deadline)


def number_of(step: Step | None) -> int | None:
    """The number of a step, however it was said; None is the newest."""
    return None if step is None else step_of(step)
