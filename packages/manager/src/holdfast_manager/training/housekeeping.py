"""What a run offers beside saving and loading: its trash, and what is swept."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any, SupportsIndex

from holdfast_manager.engine.deletion import check_duration
from holdfast_manager.engine.run import Run
from holdfast_manager.engine.trash import TrashedStep
from holdfast_manager.steps import check_step
from holdfast_storage.commit import SweepReport
from holdfast_storage.loop import get_loop


class Housekeeping:
    """The part of a `Checkpointer` that looks after what was removed."""

    _run: Run

    def _check_may_write(self) -> None:
        """Refuses where nothing is to be written."""

    @property
    def trash(self) -> Sequence[TrashedStep]:
        """The steps in the trash as they are stored now, in the order in which they got there."""
        return get_loop().run(self._run.trash.steps())

    def restore_from_trash(self, step: SupportsIndex | TrashedStep) -> None:
        """Brings a step back from the trash, as it was; it replaces nothing.

        The next commit may remove it again, by the rule that removed it: pin it if it is to stay.

        Args:
            step: Its step, of several of that number the one that was removed last; or an
                element of `trash`.

        Raises:
            StepNotInTrashError: The message lists what is there.
            StepAlreadyExistsError: The step has been saved anew; both stay where they are.
            DestinationOccupiedError: Something that is no checkpoint is in the way.
            DamagedCheckpointError: Files of it are missing; it stays in the trash.

        Examples:
            >>> import holdfast as hf
            >>> trash = hf.training.Trash()
            >>> with hf.training.Checkpointer("memory://doc/restore", trash=trash) as run:
            ...     saved = run.save(1, {"step": 1})
            ...     removed = run.delete(1)
            ...     print([entry.step for entry in run.trash])
            ...     run.restore_from_trash(1)
            ...     print(run.latest.step, run.trash)
            [1]
            1 []
        """
        self._check_may_write()
        wanted = step if isinstance(step, TrashedStep) else check_step(step)
        self._run.saver.wait_for_save()
        number = wanted.step if isinstance(wanted, TrashedStep) else wanted
        restore = self._run.trash.restore
        self._run.do(f"restore_from_trash({number})", lambda: get_loop().run(restore(wanted)))

    def empty_trash(
        self, *, older_than: datetime.timedelta = datetime.timedelta(0)
    ) -> Sequence[int]:
        """Gives up what is in the trash; the data is deleted in the background.

        Args:
            older_than: Only what has been there for so long, by the store's clock.

        Returns:
            The steps that cannot be restored any more.
        """
        self._check_may_write()
        age = check_duration(older_than, "older_than")
        empty = self._run.trash.empty
        return self._run.do(f"empty_trash({age})", lambda: get_loop().run(empty(age)))

    def sweep(self, *, older_than: datetime.timedelta = datetime.timedelta(hours=1)) -> SweepReport:
        """Removes what dead writers left, and finishes removals that were cut short.

        The first save does so by itself. Only what carries holdfast's mark is touched, and of
        that nothing whose writer is alive: a writer that is not provably gone counts as dead
        after a silence of `older_than`, by the store's clock.

        Args:
            older_than: Of a writer that does not refresh its mark; it does every 30 s.

        Returns:
            What was removed, and what was spared and why.

        Examples:
            >>> import holdfast as hf
            >>> with hf.training.Checkpointer("memory://doc/sweep") as run:
            ...     saved = run.save(1, {"step": 1})
            ...     run.sweep()
            SweepReport(removed=(), spared=())
        """
        self._check_may_write()
        silence = check_duration(older_than, "older_than").total_seconds()
        sweep = self._run.retention.sweep_now

        def work() -> list[Any]:
            report = get_loop().run(sweep(silence))
            return [list(report.removed), [list(one) for one in report.spared]]

        removed, spared = self._run.do(f"sweep({silence})", work)
        return SweepReport(tuple(removed), tuple((key, why) for key, why in spared))
