"""Errors of a run of checkpoints."""

from __future__ import annotations

from holdfast_metadata import HoldfastError


class StepAlreadyExistsError(HoldfastError, FileExistsError):
    """The step is committed already; it was not touched.

    Attributes:
        step: The step.
    """

    def __init__(self, step: int, directory: str) -> None:
        super().__init__(
            f"step {step} is committed in {directory} already; pass overwrite=True to replace it"
        )
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
