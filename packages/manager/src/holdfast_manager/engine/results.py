"""What a save of a step returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from holdfast_checkpointer.engine.response import AsyncResponse


@dataclass(frozen=True, eq=False)
class SaveResult:
    """What became of a save. True in a condition, and equal to True, if the step was committed.

    Attributes:
        step: The step.
        saved: Whether it was committed; of a save that runs in the background, whether it has
            begun.
        reason: Why not, in words; empty if it was.
    """

    step: int
    saved: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.saved

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bool):
            return self.saved is other
        if isinstance(other, SaveResult):
            return dataclasses.astuple(self) == dataclasses.astuple(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.saved)


class SaveResponse(AsyncResponse[SaveResult]):
    """The handle of a background save; false in a condition if the step was declined.

    Attributes:
        reason: Why the step was declined, in words; empty if it is being saved.
    """

    reason = ""

    @classmethod
    def declined(cls, step: int, reason: str) -> SaveResponse:
        """A response of a save that a policy declined."""
        response = cls.completed(SaveResult(step, saved=False, reason=reason))
        response.reason = reason
        return response

    def __bool__(self) -> bool:
        return not self.reason

    def __repr__(self) -> str:
        return f"<SaveResponse: {self.reason}>" if self.reason else super().__repr__()
