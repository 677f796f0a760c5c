"""The processes of a job that use one run together: one of them decides, and all hear it.

Every call that decides something about the run is a turn: each process says what it calls
and what only it knows, the primary decides, and all get its answer and what has changed in
its view of the run. So the processes of a job call the methods of one `Checkpointer` in the
same order; if they do not, each of them raises an error that says which one called what.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.errors import (
    CoordinationError,
    DisagreementError,
    FailureReport,
    RemoteProcessError,
    tell_alike,
)
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.multihost.numbers import Numbers
from holdfast_checkpointer.multihost.operation import Operation
from holdfast_checkpointer.options import Context
from holdfast_manager import errors
from holdfast_storage import (
    CheckpointChangedError,
    CheckpointDeletedError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DestinationOccupiedError,
    IncompleteCheckpointError,
    InvalidKeyError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
    UnsupportedOperationError,
)
from holdfast_storage.loop import get_loop

T = TypeVar("T")
Said = Mapping[int, Any]
_SHOWN = 8

tell_alike(
    errors.StepAlreadyExistsError,
    errors.StepNotFoundError,
    errors.StepNotInTrashError,
    errors.PinNotFoundError,
    errors.PinExistsError,
    errors.StepBeingReadError,
    errors.StepPinnedError,
    errors.StepNotQuarantinedError,
    CheckpointChangedError,
    CheckpointDeletedError,
    CheckpointNotFoundError,
    DamagedCheckpointError,
    DestinationOccupiedError,
    IncompleteCheckpointError,
    InvalidKeyError,
    LeaseHeldError,
    LeaseLostError,
    RecordUnreadableError,
    UnsupportedOperationError,
)


class View(Protocol):
    """What the primary knows of the run, and the others learn from it."""

    def news(self) -> Any:
        """On the primary: what has changed since this was asked before, as JSON."""

    def take(self, news: Any) -> None:
        """On the others: the same."""


class Job:
    """The processes that use one run. In a job of one process everything is done at once.

    Args:
        coordinator: How they meet; None if this process is alone.
        place: What the run is called, the same on every process.
        view: What all of them know.
    """

    def __init__(self, coordinator: Coordinator | None, place: str, view: View) -> None:
        self._coordinator = coordinator
        self._place = place
        self._view = view
        self._lock = threading.RLock()
        self._name = ""
        if coordinator is not None:
            self._name = f"run {place} {_openings.next(f'{coordinator.me} {place}')}"

    @classmethod
    def of(cls, context: Context, place: str, view: View) -> Job:
        """The job that this process is in; touches no device."""
        options = context.multiprocessing
        if jax_service.process_count() == 1:
            return cls(None, place, view)
        members = Membership.of(options)
        found = None if members.alone else members.coordinator(options.deadline_secs)
        return cls(found, place, view)

    @property
    def alone(self) -> bool:
        """Whether no other process takes part."""
        return self._coordinator is None

    @property
    def decides(self) -> bool:
        """Whether this process does what is done once: it decides, commits and removes."""
        found = self._coordinator
        return found is None or found.me == found.primary

    def require_current(self, context: Context) -> None:
        """Refuses to go on alone in a job that has become one of several processes.

        Raises:
            CoordinationError: The run was opened before `jax.distributed` was initialised.
            ValueError: The options name processes that the job does not have.
        """
        if self.alone and not Membership.of(context.multiprocessing).alone:
            raise CoordinationError(
                f"{self._place} was opened before jax.distributed was initialised, so that each "
                "process would decide by itself; open it after jax.distributed.initialize(). "
                "Nothing was written"
            )

    def turn(
        self,
        call: str,
        decide: Callable[[Said], T],
        *,
        said: Any = None,
        failed: Exception | None = None,
        late: Callable[[], Exception | None] = lambda: None,
    ) -> T:
        """Has the primary decide something; every process gets its answer.

        Args:
            call: What is called, the same on every process; for messages too.
            decide: Runs on the primary only, in the calling thread, with what each process
                said. It returns what JSON can hold.
            said: What this process alone knows, as JSON.
            failed: What this process has to raise in any case; nothing is decided then.
            late: Asked where another process had to raise something: what this one would raise
                a little later.

        Raises:
            DisagreementError: The processes call different things; on all of them.
            RemoteProcessError: Another process had to raise something.
            Exception: What `decide` raised on the primary; elsewhere a `RemoteProcessError` of
                the same builtin class, or an error of the same class if it concerns the run.
        """
        if self._coordinator is None:
            if failed is not None:
                raise failed
            return decide({0: said})
        ballot = {"call": call, "said": said, "failed": _report(failed, self._coordinator.me)}
        with self._lock, self._entered("turn", f"{call} of {self._place}") as operation:
            answer = self._answered(operation, ballot, decide)
            if not self.decides:
                self._view.take(answer["news"])
        if answer["failed"] is not None:
            raise (
                failed or late() or _decoded(answer["failed"]).as_error(f"{call} of {self._place}")
            )
        value: T = answer["value"]
        return value

    def leave(self, error: BaseException) -> None:
        """Tells the others, whatever they call next, that this process comes no more."""
        if self._coordinator is None:
            return
        if isinstance(error, RemoteProcessError):  # not told again as it is
            error = CoordinationError(str(error))
        with self._lock, self._entered("turn", f"the use of {self._place}") as operation:
            operation.enter("the training, which it has left")
            get_loop().run(operation.fail(error))

    def by_primary(
        self, what: str, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> Coroutine[Any, Any, T]:
        """Work that the primary does and the others wait for; its result is JSON.

        Called in turn; what is returned may be awaited at any time.
        """
        if self._coordinator is None:
            return work()
        return self._done_once(self.begin(what), work)

    def begin(self, what: str) -> Operation:
        """Something that the processes do together beside the turns; called in turn."""
        assert self._coordinator is not None
        return self._coordinator.operation(f"{self._name} {what}", what=f"{what} of {self._place}")

    async def _done_once(
        self, operation: Operation, work: Callable[[], Coroutine[Any, Any, T]]
    ) -> T:
        async with operation:
            if not operation.is_primary:
                found: T = json.loads(await operation.conclude())
                return found
            async with beating(operation):
                result = await work()
            await operation.conclude(json.dumps(result).encode())
            return result

    @contextlib.contextmanager
    def _entered(self, what: str, told: str) -> Iterator[Operation]:
        """An operation whose parts are done from this thread."""
        assert self._coordinator is not None
        operation = self._coordinator.operation(f"{self._name} {what}", what=told)
        loop = get_loop()
        entered: concurrent.futures.Future[asyncio.Future[BaseException | None]]
        entered = concurrent.futures.Future()

        async def hold() -> None:
            """Enters and leaves in one task, as the operation wants it."""
            left = asyncio.get_running_loop().create_future()
            await operation.__aenter__()
            entered.set_result(left)
            error = await left
            # Not raised here: what ends a program would end the loop.
            await operation.__aexit__(
                None if error is None else type(error),
                error,
                None if error is None else error.__traceback__,
            )

        holding = loop.submit(hold())
        left = entered.result()
        told_of: BaseException | None = None
        try:
            yield operation
        except BaseException as error:
            told_of = error
            raise
        finally:
            loop.call_soon(functools.partial(left.set_result, told_of))
            holding.result()

    def _answered(
        self, operation: Operation, ballot: Any, decide: Callable[[Said], Any]
    ) -> dict[str, Any]:
        loop = get_loop()
        gathered = loop.run(operation.gather("the call", json.dumps(ballot).encode()))
        if gathered is None:
            data = zlib.decompress(loop.run(operation.conclude()))
            found: dict[str, Any] = json.loads(data)
            return found
        operation.enter("the decision")
        ballots = {process: json.loads(data) for process, data in sorted(gathered.items())}
        _require_same_call(ballots)
        failed = _first_cause([b["failed"] for b in ballots.values()])
        value = None
        if failed is None:
            beat = loop.submit(_beat(operation))
            try:
                value = decide({process: b["said"] for process, b in ballots.items()})
            finally:
                beat.cancel()
        answer = {"value": value, "failed": failed, "news": self._view.news()}
        # The first news list the whole run.
        loop.run(operation.conclude(zlib.compress(json.dumps(answer).encode())))
        return answer


# Each opening of a run meets those of the other processes.
_openings = Numbers()


@contextlib.asynccontextmanager
async def beating(operation: Operation) -> AsyncIterator[None]:
    """Says to those that wait that this process gets on, while the block does its work."""
    beat = asyncio.create_task(_beat(operation))
    try:
        yield
    finally:
        beat.cancel()


async def _beat(operation: Operation) -> None:
    while True:
        operation.advance()
        await asyncio.sleep(1.0)


def _first_cause(reports: Sequence[Any]) -> Any:
    """The failure to tell, of those that processes have: not one that is about another's."""
    found = [report for report in reports if report is not None]
    return min(
        found, key=lambda report: report["error"] == RemoteProcessError.__name__, default=None
    )


def _report(error: Exception | None, me: int) -> dict[str, Any] | None:
    if error is None:
        return None
    return dataclasses.asdict(FailureReport.of(error, me, "what it did before"))


def _decoded(report: dict[str, Any]) -> FailureReport:
    return FailureReport.from_bytes(json.dumps(report).encode())


def _require_same_call(ballots: Mapping[int, Any]) -> None:
    callers: dict[str, list[int]] = {}
    for process, ballot in ballots.items():
        callers.setdefault(ballot["call"], []).append(process)
    if len(callers) > 1:
        told = "; ".join(
            f"process {', '.join(map(str, who[:_SHOWN]))}{', ...' if len(who) > _SHOWN else ''} "
            f"called {call}"
            for call, who in callers.items()
        )
        raise DisagreementError(
            f"the processes of the job do not call the same: {told}. All of them call the methods "
            "of one Checkpointer with the same steps and in the same order. Nothing was done"
        )
