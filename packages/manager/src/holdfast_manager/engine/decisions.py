"""What becomes of a step: whether it is saved, and where; in a job decided once for all."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from holdfast_checkpointer.options import Context
from holdfast_manager.engine.job import Job, Said
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.preemption import Notice, Preemption
from holdfast_manager.errors import StepAlreadyExistsError
from holdfast_manager.policies.checks import yes_or_no
from holdfast_manager.policies.info import Candidate
from holdfast_manager.policies.save_decision_policies import DecisionContext, SaveDecisionPolicy
from holdfast_manager.run_directory import RunDirectory


class Turn(Protocol):
    """`Job.turn`, where a failure of an earlier save is told once."""

    def __call__(  # noqa: D102 - told above
        self,
        call: str,
        decide: Callable[[Said], dict[str, Any]],
        *,
        said: Any = None,
        failed: Exception | None = None,
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Decision:
    """What becomes of a step.

    Attributes:
        skip: Why it is not saved, in words; empty if it is.
        name: The folder in which it is saved.
        metrics: Those of the process that decides; None in a job of one.
    """

    skip: str
    name: str
    metrics: Any


class Decisions:
    """Decides about steps, with the policy and by what is known of the end of the job.

    Args:
        run: The run.
        known: Its steps.
        job: The processes that save together.
        policy: When to save.
        context: Options.
        turn: Has the primary of the job decide.
        saving: The step that is being saved, or None.
    """

    def __init__(
        self,
        run: RunDirectory,
        known: KnownSteps,
        job: Job,
        policy: SaveDecisionPolicy,
        context: Context,
        turn: Turn,
        saving: Callable[[], int | None],
    ) -> None:
        self._run = run
        self._known = known
        self._job = job
        self._policy = policy
        self._context = context
        self._turn = turn
        self._saving = saving
        self._preemption = Preemption()

    def decide(
        self,
        step: int,
        metrics: Mapping[str, Any] | None,
        *,
        force: bool,
        overwrite: bool,
        failed: Exception | None,
    ) -> Decision:
        """What becomes of a step, the same on every process of the job.

        Raises:
            StepAlreadyExistsError: It is committed, and not to be overwritten.
            Exception: `failed`, what this process has to raise in any case.
        """

        def decide(said: Said) -> dict[str, Any]:
            if not overwrite and self._known.is_committed(step):
                raise StepAlreadyExistsError(step, self._run.label)
            skip = ""
            notice = Notice.among(said)
            if not force:
                skip = self._reason_to_skip(step, notice, metrics=metrics, overwrite=overwrite)
            name = "" if skip else self._known.name_for(step)
            kept = None if skip or self._job.alone else _as_json(metrics)
            return {"skip": skip, "name": name, "metrics": kept, "notice": notice.as_json()}

        how = ", force=True" * force + ", overwrite=True" * overwrite
        found = self._asked(step, f"save({step}{how})", decide, failed=failed)
        return Decision(found["skip"], found["name"], found["metrics"])

    def _asked(
        self,
        step: int,
        call: str,
        decide: Callable[[Said], dict[str, Any]],
        *,
        failed: Exception | None = None,
    ) -> dict[str, Any]:
        """Has a step decided about; all processes have seen the same notices after that."""
        # JAX expects to be asked at every step, in every process.
        said = None if failed else self._preemption.own(step).as_json()
        found = self._turn(call, decide, said=said, failed=failed)
        self._preemption.settle(step, Notice(*found["notice"]))
        return found

    def would_save(self, step: int) -> bool:
        """Whether a step would be saved. Changes nothing."""

        def decide(said: Said) -> dict[str, Any]:
            notice = Notice.among(said)
            return {"skip": self._reason_to_skip(step, notice), "notice": notice.as_json()}

        return not self._asked(step, f"should_save({step})", decide)["skip"]

    def reason_to_skip(self, step: int) -> str:
        """Why a step would not be saved, in words; empty if it would be. Of one process only."""
        return self._reason_to_skip(step, self._preemption.own(step))

    def _reason_to_skip(
        self,
        step: int,
        notice: Notice,
        *,
        metrics: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> str:
        checkpoints = self._known.all()
        latest = checkpoints[-1].step if checkpoints else -1
        if step < latest or (step == latest and not overwrite):
            return f"step {step} is not newer than the latest, {latest} (force=True saves it)"
        saving = self._saving()
        if saving is not None and step <= saving and not overwrite:
            return f"step {step} is not newer than {saving}, which is being saved"
        context = DecisionContext(
            is_saving_in_progress=saving is not None,
            reached_preemption=notice.reached,
            multiprocessing_options=self._context.multiprocessing,
            saving_step=saving,
        )
        if notice.reached and notice.signal:
            return ""  # no step comes after this one, whatever the policy waits for
        candidate = Candidate(step, metrics=metrics)
        answer: object = self._policy.should_save(candidate, checkpoints, context=context)
        if answer is None or not yes_or_no(answer, self._policy):
            busy = "" if saving is None else f"; step {saving} was being saved"
            return f"the policy {self._policy!r} declined step {step}{busy}"
        return ""

    def reached_preemption(self, step: int) -> bool:
        """Whether this is the step at which a job that is to be stopped saves."""
        if self._job.alone or self._preemption.is_settled(step):
            return self._preemption.reached(step)

        def decide(said: Said) -> dict[str, Any]:
            return {"notice": Notice.among(said).as_json()}

        verdict = self._asked(step, f"reached_preemption({step})", decide)
        return Notice(*verdict["notice"]).reached


def _as_json(metrics: Any) -> Any:
    """Metrics for the other processes; None if they are none that can be saved."""
    try:
        return json.loads(json.dumps(metrics))
    except (TypeError, ValueError):
        return None  # staging says why
