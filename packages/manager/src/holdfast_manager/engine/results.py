"""What a save of a step returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

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

    `result()` waits, and gives a `SaveResult` or raises. What is known without waiting is in
    `saved` and `reason`; looking at them is not asking: a failure is told later all the same.

    Args:
        step: The step.
        work: Saves it.
        what: What that is, for messages.
        deadline: In seconds.
        afterwards: Called after the commit.

    Attributes:
        step: The step.

    Examples:
        >>> import holdfast as hf
        >>> with hf.training.Checkpointer("memory://doc/response-of-a-save") as run:
        ...     response = run.save_async(1, {"w": 0.5})
        ...     again = run.save_async(0, {"w": 0.5})
        >>> bool(response), response.saved, response.reason
        (True, True, '')
        >>> bool(again), again.saved, "step 0 is not newer" in again.reason
        (False, False, True)
    """

    def __init__(
        self,
        step: int,
        work: Coroutine[Any, Any, SaveResult],
        *,
        what: str,
        deadline: float | None,
        afterwards: Callable[[], Any] | None,
    ) -> None:
        self.step = step
        self._declined = ""
        super().__init__(work, what=what, deadline=deadline, afterwards=afterwards)

    @classmethod
    def declined(cls, step: int, reason: str) -> SaveResponse:
        """A response of a save that a policy declined."""
        response = cls.completed(SaveResult(step, saved=False, reason=reason))
        response.step = step
        response._declined = reason
        return response

    @property
    def saved(self) -> bool | None:
        """Whether the step was committed; None while that is not decided."""
        if not self._future.done():
            return None
        return self._future.exception() is None and self._future.result().saved

    @property
    def reason(self) -> str:
        """Why the step was not saved, in words: why it was declined, or what the save failed with.

        Empty if it was, or while that is not decided.
        """
        if self._declined or not self._future.done():
            return self._declined
        error = self._future.exception()
        return "" if error is None else f"{type(error).__name__}: {error}"

    def __bool__(self) -> bool:
        return not self._declined

    def __repr__(self) -> str:
        return f"<SaveResponse: {self._declined}>" if self._declined else super().__repr__()
