"""How a run is loaded: the newest step, one by its number, or the newest that is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer import checkpointables as several
from holdfast_checkpointer import functions, options
from holdfast_checkpointer.engine.names import AUTO
from holdfast_checkpointer.metadata import CheckpointMetadata as StoredMetadata
from holdfast_manager.engine.fallback import LoadResponse, Read
from holdfast_manager.engine.known import step_of
from holdfast_manager.training.reports import Reports, Step


class Loads(Reports):
    """The part of a `Checkpointer` that loads."""

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

    def _load(self, step: Step | None, read: Read, *, fallback: bool) -> LoadResponse:
        deadline = self._context.asynchronous.timeout_secs
        return self._run.loading.start(number_of(step), read, fallback=fallback, deadline=deadline)


def number_of(step: Step | None) -> int | None:
    """The number of a step, however it was said; None is the newest."""
    return None if step is None else step_of(step)
