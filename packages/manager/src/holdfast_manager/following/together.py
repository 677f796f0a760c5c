"""Following a run from all processes of a job: one waits and holds the step, all hear of it."""

from __future__ import annotations

from typing import Any

from holdfast_checkpointer.multihost.errors import CoordinationError
from holdfast_checkpointer.options import Context
from holdfast_manager.engine.job import Job
from holdfast_manager.following.follower import Follower


class _NothingNew:
    """Who follows a run knows nothing of it but the step that it is told."""

    def news(self) -> Any:
        """Nothing."""
        return None

    def take(self, news: Any) -> None:
        """Takes nothing."""


class Together:
    """The waits of one loop. In a job of one process it waits by itself.

    Args:
        follower: Looks at the run, on the process that decides.
        place: The run, called the same on every process.
        context: Options; they say which processes follow.
    """

    def __init__(self, follower: Follower, place: str, context: Context) -> None:
        self.follower = follower
        self._job = Job.of(context, f"the following of {place}", _NothingNew())
        self._reading: Any = None

    def wait(self, at_least: int) -> int | None:
        """The newest step from `at_least` on, held until all have come to the next call.

        Returns:
            None if the wait expired.

        Raises:
            DisagreementError: The processes wait for different steps.
            RemoteProcessError: Another process failed, or has left the loop.
        """

        def decide(_: Any) -> int | None:
            self._let_go()
            self._reading = self.follower.wait(at_least)
            return None if self._reading is None else int(self._reading.entry.step)

        try:
            return self._job.turn(f"the wait for a step from {at_least} on", decide)
        except BaseException:
            self._let_go()
            raise

    def has_read(self) -> None:
        """This process does not need the step any more; in a job of several, others may."""
        if self._job.alone:
            self._let_go()

    def end(self) -> None:
        """All have read; waits for them."""
        try:
            self._job.turn("the end of the block", lambda _: None)
        finally:
            self._let_go()

    def leave(self, error: BaseException) -> None:
        """This process waits no more, and others that do are told."""
        self._let_go()
        if isinstance(error, GeneratorExit):
            error = CoordinationError("it has left its loop over the checkpoints")
        self._job.leave(error)

    def _let_go(self) -> None:
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.close()
