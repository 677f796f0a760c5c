"""Errors of a run of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast_manager.quarantine.steps import QuarantinedStep
from holdfast_metadata import HoldfastError
from holdfast_storage import DamagedCheckpointError


class StepAlreadyExistsError(HoldfastError, FileExistsError, ValueError):
    """The step is committed already; it was not touched.

    Orbax's v1 catches it as a `FileExistsError`, its v0 as a `ValueError`.

    Attributes:
        step: The step.
    """

    def __init__(self, step: int, directory: str, *, hint: str = "") -> None:
        advice = hint or (
            "delete it first, or replace it with overwrite=True, which training.Checkpointer takes"
        )
        super().__init__(f"step {step} is committed in {directory} already; {advice}")
        self.step = step


class StepNotFoundError(HoldfastError, FileNotFoundError):
    """No such step is committed.

    Attributes:
        step: The step that was asked for; None if the latest was.
    """

    def __init__(self, step: int | None, directory: str, available: list[int]) -> None:
        shown = ", ".join(map(str, available[-10:])) or "none"
        more = f" (and {len(available) - 10} earlier)" if len(available) > 10 else ""
        what = "no step" if step is None else f"step {step} is not"
        verb = "is committed" if step is None else "committed"
        super().__init__(f"{what} {verb} in {directory}; committed steps: {shown}{more}")
        self.step = step


class StepNotInTrashError(HoldfastError, FileNotFoundError):
    """No such step is in the trash; the message lists those that are.

    Attributes:
        step: The step that was asked for.
    """

    def __init__(self, step: int, directory: str, available: list[int]) -> None:
        shown = ", ".join(map(str, sorted(available)[-10:])) or "none"
        super().__init__(f"step {step} is not in the trash of {directory}; there: {shown}")
        self.step = step


class PinNotFoundError(HoldfastError, KeyError):
    """The run has no pin of that name; the message lists those it has."""

    def __init__(self, name: str, directory: str, pins: dict[str, int]) -> None:
        shown = ", ".join(f"{pin!r} (step {step})" for pin, step in sorted(pins.items())) or "none"
        super().__init__(f"{directory} has no pin {name!r}; its pins: {shown}")

    def __str__(self) -> str:
        return str(self.args[0])


class PinExistsError(HoldfastError, ValueError):
    """A pin of that name holds another step; it was not touched."""

    def __init__(self, name: str, step: int, directory: str) -> None:
        super().__init__(
            f"the pin {name!r} of {directory} holds step {step}; unpin it first, or choose another "
            "name"
        )


class StepBeingReadError(HoldfastError, ValueError):
    """A process reads the step at this moment; it was not removed.

    Attributes:
        step: The step.
    """

    def __init__(self, step: int, holds: Sequence[str], directory: str) -> None:
        super().__init__(
            f"step {step} of {directory} was not removed: {'; '.join(holds)}. A reader that has "
            "died is passed over: at once on its own host, elsewhere two minutes after it"
        )
        self.step = step


class StepPinnedError(HoldfastError, ValueError):
    """The step is pinned: it is neither removed nor replaced before it is unpinned.

    Attributes:
        step: The step.
        names: The pins that hold it.
    """

    def __init__(self, step: int, names: list[str], directory: str) -> None:
        shown = ", ".join(map(repr, names))
        super().__init__(
            f"step {step} of {directory} is pinned as {shown} and was not touched; unpin it first"
        )
        self.step = step
        self.names = names


class NoGoodStepError(DamagedCheckpointError):
    """No step of the run can be loaded whole; no step was marked.

    Not a `FileNotFoundError`: a job that starts anew where there is no checkpoint must not do
    so where there are damaged ones.

    Attributes:
        skipped: Every step, the newest first, and what is wrong with it.
    """

    def __init__(self, directory: str, skipped: Sequence[QuarantinedStep]) -> None:
        listed = "\n".join(f"  {step}" for step in skipped)
        super().__init__(f"no step of {directory} can be loaded whole:\n{listed}")
        self.skipped = tuple(skipped)


class StepNotQuarantinedError(HoldfastError, ValueError):
    """The step is not quarantined; the message lists those that are."""

    def __init__(self, step: int, directory: str, quarantined: Sequence[int]) -> None:
        shown = ", ".join(map(str, quarantined)) or "none"
        super().__init__(
            f"step {step} of {directory} is not quarantined; quarantined steps: {shown}"
        )
