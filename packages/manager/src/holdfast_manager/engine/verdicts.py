"""Which steps stay, and which rule says so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from holdfast_manager.policies.checks import yes_or_no
from holdfast_manager.policies.preservation_policies import (
    AnyPreservationPolicy,
    BestN,
    DiskBudget,
    PreservationContext,
    PreservationPolicy,
)
from holdfast_manager.quarantine import Aside
from holdfast_manager.steps import CheckpointMetadata

NEWEST = "it is the newest committed step"
FIXED = "Orbax wrote it, and this storage cannot move it to the trash"
UNMARKED = "Orbax wrote it before it marked its checkpoints, and holdfast does not remove those"


@dataclass(frozen=True)
class Verdict:
    """What retention makes of one step. True in a condition if the step stays.

    Attributes:
        step: The step.
        kept: Whether it stays.
        reasons: Which rules keep it, in words; if it goes, which policy does not keep it.
    """

    step: int
    kept: bool
    reasons: tuple[str, ...]

    def __bool__(self) -> bool:
        return self.kept


def protections(
    checkpoints: Sequence[CheckpointMetadata],
    holds: Mapping[int, Sequence[str]],
    fixed: Sequence[CheckpointMetadata] = (),
) -> dict[int, list[str]]:
    """The steps that stay whatever a policy says, and why; `fixed` cannot go to the trash."""
    found: dict[int, list[str]] = {}
    for entry in checkpoints:
        reasons = [NEWEST] if entry is checkpoints[-1] else []
        reasons += holds.get(entry.step, ())
        reasons += [UNMARKED] if entry.unmarked else []
        reasons += [FIXED] if entry in fixed else []
        if reasons:
            found[entry.step] = reasons
    return found


def judge(
    checkpoints: Sequence[CheckpointMetadata],
    policy: PreservationPolicy,
    protected: Mapping[int, Sequence[str]],
) -> list[Verdict]:
    """Decides about each checkpoint. May read their metrics, times and sizes.

    Raises:
        ValueError: A policy does not answer for each checkpoint; it is named.
        TypeError: An answer is neither yes nor no.
    """
    context = PreservationContext(protected=protected)
    members = policy.policies if isinstance(policy, AnyPreservationPolicy) else (policy,)
    answers = [(member, _answers(member, checkpoints, context)) for member in members]
    verdicts = []
    for index, entry in enumerate(checkpoints):
        reasons = list(protected.get(entry.step, ()))
        reasons += [f"{member!r} keeps it" for member, answer in answers if answer[index]]
        kept = bool(reasons)
        if not kept:
            reasons = [f"{policy!r} does not keep it"]
        verdicts.append(Verdict(entry.step, kept, tuple(reasons)))
    return verdicts


def judge_aside(
    aside: Sequence[Aside],
    verdicts: Sequence[Verdict],
    holds: Mapping[int, Sequence[str]],
    fixed: Sequence[CheckpointMetadata] = (),
) -> list[Verdict]:
    """Decides about steps that are there and not good, of which no policy is told.

    Each stays as evidence while a good step that is older stays, and goes after that: so a
    policy that drops old steps drops them too, and never before there are newer good ones.
    """
    kept = [verdict.step for verdict in verdicts if verdict.kept]
    found = []
    for one in aside:
        step = one.entry.step
        reasons = holds.get(step, ())
        said = f"it is {one.told.problem} and no policy counts it: {one.told.reason}"
        stays = not kept or step > kept[0] or one.told.problem == "unreadable"
        if reasons or stays or one.entry in fixed:
            found.append(Verdict(step, True, (*reasons, said)))
        else:
            found.append(Verdict(step, False, (f"every step that stays is newer; {said}",)))
    return found


def _answers(
    policy: PreservationPolicy,
    checkpoints: Sequence[CheckpointMetadata],
    context: PreservationContext,
) -> list[bool]:
    answers: object = policy.should_preserve(checkpoints, context=context)
    given = list(answers) if isinstance(answers, Iterable) else [answers]
    if len(given) != len(checkpoints):
        raise ValueError(
            f"{policy!r} gave {len(given)} answers about {len(checkpoints)} checkpoints; nothing "
            "is removed"
        )
    return [yes_or_no(answer, policy) for answer in given]


def best_by_policy(
    policy: PreservationPolicy, checkpoints: Sequence[CheckpointMetadata]
) -> CheckpointMetadata | None:
    """The best checkpoint by the first `BestN` in a policy; None if there is none of either."""
    ranking = _ranking(policy)
    ranked = [] if ranking is None else ranking.ranking(checkpoints)
    by_step = {entry.step: entry for entry in checkpoints}
    return by_step[ranked[-1].step] if ranked else None


def _ranking(policy: PreservationPolicy) -> BestN | None:
    if isinstance(policy, BestN):
        return policy
    inside: Sequence[PreservationPolicy] = ()
    if isinstance(policy, AnyPreservationPolicy):
        inside = policy.policies
    elif isinstance(policy, DiskBudget):
        inside = (policy.policy,)
    return next((found for found in map(_ranking, inside) if found is not None), None)
