"""One thing that several processes do together, and how it ends for all of them.

Every operation has one key, `end`, that is set once: by the primary with the result, or by
whichever process fails first with a report. Every process waits for it from the beginning,
so a failure reaches all others at once, whatever they are doing. Inside, values go to the
primary (`gather`) and from it (`broadcast`): two messages for each process and phase.

A process that fails before it knows that all have met says so of its `Call`, where those hear
it that wait here and those that have not come. Then the operation was never begun: each
process removes what it has put, and the next one of the name has the same keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast_checkpointer import progress
from holdfast_checkpointer.multihost.board import Board, Place
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.errors import (
    CoordinationError,
    DisagreementError,
    FailureReport,
    ProcessStalledError,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.service import KeyTaken, KeyValueService

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FAILED, _DONE = b"F", b"D"
_SLICE_S = 30.0
_LONG_S = 2.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.5


class Operation:
    """Entered by every process that takes part, with the same name.

    Leaving the block by an exception tells the others; their calls then raise
    `RemoteProcessError`. The keys are removed by the last process that leaves.

    Args:
        service: Where the processes meet.
        key: Unique to this operation, and the same on every process.
        what: For messages.
        me: This process.
        processes: Those that take part.
        primary: The one that decides.
        deadline_s: How long a process is waited for that makes no progress, in seconds.
        board: Where this process shows that it waits.
        call: The call of which this is a part, if it is one that all processes make.
        forget: Takes back that this was begun.
    """

    def __init__(
        self,
        service: KeyValueService,
        key: str,
        *,
        what: str,
        me: int,
        processes: Sequence[int],
        primary: int,
        deadline_s: float,
        board: Board,
        call: Call | None = None,
        forget: Callable[[], None] = lambda: None,
    ) -> None:
        self._service = service
        self._key = key
        self._what = what
        self.me = me
        self.processes = tuple(processes)
        self.primary = primary
        self._deadline_s = deadline_s
        self._phase = "its beginning"
        self._board = board
        # Who waits elsewhere in the same call is wrong only where calls come in one order.
        self._place = Place(key, call.key if call is not None and call.ordered else "", what)
        self._call = call
        self._forget = forget
        self._met = call is None
        self._word: asyncio.Task[FailureReport | None] | None = None
        self._puts: dict[str, asyncio.Task[None]] = {}
        self._end: asyncio.Task[bytes] | None = None
        self._steps = 0
        self._published = 0
        self._ticker: asyncio.Task[None] | None = None
        self._listening: Any = None

    @property
    def is_primary(self) -> bool:
        """Whether this process decides."""
        return self.me == self.primary

    async def __aenter__(self) -> Self:
        self._end = asyncio.create_task(self._watch())
        if self._call is not None and len(self.processes) > 1:
            self._word = asyncio.create_task(self._call.word())
        self._ticker = asyncio.create_task(self._tick())
        self._listening = progress.listen(self.advance)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._end is not None
        assert self._ticker is not None
        self._ticker.cancel()
        progress.forget(self._listening)
        never_begun = error is not None and await self._is_void(error)
        if error is not None and not never_begun:
            await self.fail(error)
        for watch in (watches := self._watches):
            watch.cancel()
        if watches:
            await asyncio.wait(watches)
        if not isinstance(error, ProcessStalledError):  # those that stall as well read it
            await self._board.take_down()
        with contextlib.suppress(CoordinationError):
            await (self._take_back() if never_begun else self._leave(failed=error is not None))

    @property
    def _watches(self) -> list[asyncio.Task[Any]]:
        """What this process still waits to hear."""
        return [task for task in (self._end, self._word) if task is not None and not task.done()]

    async def _is_void(self, error: BaseException) -> bool:
        """Whether the call of this is void, which an error before all have met makes it."""
        if self._met or self._call is None:
            return False
        if self._word is None or not self._word.done() or self._word.exception() is not None:
            return await self._call.void(error, self._phase)
        if self._word.result() is None:
            return False
        await self._call.heard()
        return True

    async def _take_back(self) -> None:
        """Removes what this process has put, so that the name can be used again."""
        self._forget()
        if self._puts:  # one that was abandoned may still be under way
            await asyncio.wait(self._puts.values(), timeout=_SLICE_S)
        for key in self._puts:
            await self._service.delete(key)

    async def _leave(self, *, failed: bool) -> None:
        if failed and not self.is_primary:
            await self._put(f"{self._key}/stopped/{self.me}", b"")
        last = await self._service.increment(f"{self._key}/left") == len(self.processes)
        if last:
            await self._service.delete(self._key)
        # The primary has decided the call; who takes part in several at once may number them
        # differently. After a failure the last is asked, for others may look at the word yet.
        if self._call is not None and (last if failed else self.is_primary):
            await self._call.forget()

    async def _put(self, key: str, value: bytes) -> None:
        """Sets a key that nobody else sets; one whose reply was lost may be sent once more."""
        task = asyncio.create_task(self._service.put(key, value, overwrite=True))
        self._puts[key] = task
        await asyncio.shield(task)

    async def fail(self, error: BaseException) -> None:
        """Tells the others of a failure, unless another one was told first."""
        if isinstance(error, RemoteProcessError):
            return
        report = FailureReport.of(error, self.me, self._phase)
        try:
            await self._service.put(f"{self._key}/end", _FAILED + report.to_bytes())
        except KeyTaken:
            return
        except CoordinationError:
            _log.warning("could not tell the other processes of %r", error, exc_info=True)

    async def others_stopped(self, patience_s: float) -> list[int]:
        """Waits on the primary, after a failure, until the others do nothing any more.

        Returns:
            Those that have not said so after `patience_s` seconds.
        """
        began = time.monotonic()
        pause = _FIRST_PAUSE_S
        while True:
            found = await self._service.list(f"{self._key}/stopped")
            stopped = {int(key.rpartition("/")[2]) for key in found}
            left = sorted(set(self.processes) - stopped - {self.me})
            if not left or time.monotonic() - began > patience_s:
                return left
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)

    def enter(self, phase: str) -> None:
        """Says what this process does now: a failure is told together with it."""
        self._phase = phase
        self.advance()

    def advance(self) -> None:
        """Notes progress: the deadline of those that wait for this process begins anew."""
        self._steps += 1

    async def gather(self, phase: str, value: bytes) -> dict[int, bytes] | None:
        """Sends a value to the primary.

        Returns:
            On the primary the value of each process; elsewhere None, without waiting.

        Raises:
            RemoteProcessError: A process failed.
            ProcessStalledError: Some did not come; they are named.
        """
        self.enter(phase)
        if not self.is_primary:
            await self.until_failure(self._put(self._at(phase, self.me), value))
            return None
        others = await self.until_failure(self._collect(phase))
        await self._meet()
        return {**others, self.me: value}

    async def _meet(self) -> None:
        if not self._met and self._call is not None:
            void = await self.until_failure(self._call.meet())
            if void is not None:
                raise void.as_error(self._what)
        self._met = True

    async def broadcast(self, phase: str, value: bytes | None = None) -> bytes:
        """Gives a value of the primary to every process.

        Raises:
            RemoteProcessError: A process failed.
            ProcessStalledError: The primary did not come.
        """
        self.enter(phase)
        key = f"{self._key}/{phase}/value"
        if self.is_primary:
            assert value is not None
            if len(self.processes) > 1:
                await self.until_failure(self._put(key, value))
            return value
        found = await self.until_failure(self._await_value(key, phase))
        self._met = True
        return found

    async def vote(
        self, phase: str, ballot: bytes, judge: Callable[[dict[int, bytes]], bytes]
    ) -> bytes:
        """Has the primary judge what each process says; all get its verdict.

        Raises:
            JobError: On every process, if `judge` raised it on the primary.
            RemoteProcessError: A process failed.
            ProcessStalledError: Some did not come; they are named.
        """
        ballots = await self.gather(phase, ballot)
        return await self.broadcast(phase, None if ballots is None else judge(ballots))

    async def barrier(self, phase: str) -> None:
        """Waits until every process has come here; raises as `vote`."""
        await self.vote(phase, b"", lambda _: b"")

    async def conclude(self, value: bytes | None = None) -> bytes:
        """Ends the operation: the primary says with what, the others wait for it.

        Raises:
            RemoteProcessError: A process failed before. Not on the primary: what it has
                decided stands, and is logged to be known to fewer processes.
        """
        assert self._end is not None
        self.enter("the end")
        if not self.is_primary:
            return await self._await_end()
        assert value is not None
        try:
            await self._service.put(f"{self._key}/end", _DONE + value)
        except KeyTaken:
            if await self._said_failed():
                _log.warning("%s is done, but a process gave up before it could know", self._what)
        except CoordinationError:
            _log.warning("%s is done, but the others were not told", self._what, exc_info=True)
        return value

    async def _said_failed(self) -> bool:
        """Whether the end that is set is a failure, and not what this process itself has put."""
        with contextlib.suppress(CoordinationError, TimeoutError):
            said = await self._service.get(f"{self._key}/end", timeout_s=self._slice_s)
            return said[:1] == _FAILED
        return True

    def _at(self, phase: str, process: int) -> str:
        return f"{self._key}/{phase}/from/{process}"

    async def _collect(self, phase: str) -> dict[int, bytes]:
        """Waits for a value of every other process, as long as those that lack get on."""
        wanted = set(self.processes) - {self.me}
        prefix = f"{self._key}/{phase}/from"
        patience = _Patience(self._deadline_s)
        pause, look = _FIRST_PAUSE_S, time.monotonic() + 2 * _LONG_S
        while wanted:
            found = await self._service.list(prefix)
            by_process = {int(key.rpartition("/")[2]): value for key, value in found.items()}
            missing = wanted - by_process.keys()
            if not missing:
                return {process: by_process[process] for process in wanted}
            if patience.saw(len(by_process)):
                self.advance()
            if not self._met and time.monotonic() > look:
                await self._require_same_place(missing)
                look = time.monotonic() + 2 * _LONG_S
            if patience.is_short:
                await self._look_at_progress(missing, patience, phase)
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
        return {}

    async def _look_at_progress(self, missing: set[int], patience: _Patience, phase: str) -> None:
        found = await self._service.list(f"{self._key}/progress")
        said = {int(key.rpartition("/")[2]): value for key, value in found.items()}
        stalled = patience.stalled({process: said.get(process) for process in missing})
        if stalled:
            await self._raise_stalled(phase, stalled)
        self.advance()

    async def _raise_stalled(self, phase: str, stalled: Sequence[int]) -> None:
        places = {}
        with contextlib.suppress(CoordinationError):
            places = await self._board.read()
        elsewhere = {
            process: places[process].what
            for process in stalled
            if process in places and places[process].operation != self._key
        }
        raise ProcessStalledError(self._what, phase, stalled, self._deadline_s, elsewhere)

    async def _require_same_place(self, missing: set[int]) -> None:
        """Refuses to wait for those that wait for this process elsewhere, in the same call.

        Raises:
            DisagreementError: On all of them; it names the places.
        """
        for process, place in sorted((await self._board.read()).items()):
            if process in missing and place.call and place.call == self._place.call:
                raise DisagreementError(
                    f"the processes do not save to the same place: process {self.me} is in "
                    f"{self._what}, process {process} in {place.what}; nothing was written"
                )

    async def _await_value(self, key: str, phase: str) -> bytes:
        patience = _Patience(self._deadline_s)
        while True:
            try:
                return await self._service.get(key, timeout_s=self._slice_s)
            except TimeoutError:
                await self._require_primary(patience, phase)

    async def _await_end(self) -> bytes:
        assert self._end is not None
        patience = _Patience(self._deadline_s)
        while not self._end.done():
            self._raise_if_failed()
            await asyncio.wait(
                self._watches, timeout=self._slice_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not self._end.done():
                await self._require_primary(patience, "the end")
        self._raise_if_failed()
        return self._end.result()[1:]

    @property
    def _slice_s(self) -> float:
        return min(_SLICE_S, self._deadline_s / 2)

    async def _require_primary(self, patience: _Patience, phase: str) -> None:
        """Goes on waiting for the primary only as long as it gets on."""
        found = await self._service.list(f"{self._key}/progress")
        said = found.get(f"{self._key}/progress/{self.primary}")
        if patience.stalled({self.primary: said}):
            await self._raise_stalled(phase, [self.primary])

    async def _watch(self) -> bytes:
        while True:
            try:
                return await self._service.get(f"{self._key}/end", timeout_s=_SLICE_S)
            except TimeoutError:
                continue

    async def until_failure(self, work: Coroutine[Any, Any, T]) -> T:
        """Does work of this process alone; it is cancelled if another process fails.

        Raises:
            JobError: What the primary found to be wrong with all of them.
            RemoteProcessError: A process failed.
        """
        assert self._end is not None
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self._raise_if_failed()
                await asyncio.wait([task, *self._watches], return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_failed()
            return await task
        except BaseException:
            task.cancel()
            await asyncio.wait([task])  # whoever is told that this stopped relies on it
            raise

    async def require_no_failure(self) -> None:
        """Raises what another process has told, if one has; the last look before a decision.

        Raises:
            JobError: What the primary found to be wrong with all of them.
            RemoteProcessError: A process failed.
        """
        await self.until_failure(asyncio.sleep(0))

    def _raise_if_failed(self) -> None:
        if self._word is not None and self._word.done() and not self._met:
            void = self._word.result()
            if void is not None:
                raise void.as_error(self._what)
        if self._end is None or not self._end.done():
            return
        said = self._end.result()
        if said[:1] == _FAILED:
            raise FailureReport.from_bytes(said[1:]).as_error(self._what)

    async def _tick(self) -> None:
        """Publishes progress, a few times within the deadline of those that wait."""
        await asyncio.sleep(min(_LONG_S, self._deadline_s / 4))
        if not self._met:
            await self._board.show(self._place)
        while True:
            await asyncio.sleep(self._deadline_s / 4)
            await self._board.show(self._place)
            if self._steps == self._published:
                continue
            self._published = self._steps
            with contextlib.suppress(CoordinationError):
                await self._put(f"{self._key}/progress/{self.me}", str(self._steps).encode())


class _Patience:
    """How long nothing has been heard of each process, by this process's clock."""

    def __init__(self, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self._began = time.monotonic()
        self._looked = self._began
        self._count = 0
        self._heard: dict[int, tuple[bytes | None, float]] = {}

    def saw(self, count: int) -> bool:
        """Notes how many have come; says whether that is more than before."""
        more = count > self._count
        self._count = count
        return more

    @property
    def is_short(self) -> bool:
        """Whether it is time to ask who gets on."""
        return time.monotonic() - self._looked > self._deadline_s / 4

    def stalled(self, said: dict[int, bytes | None]) -> list[int]:
        """Those that said nothing new for the whole deadline."""
        self._looked = now = time.monotonic()
        for process, word in said.items():
            before = self._heard.get(process, (None, self._began))
            if word != before[0]:
                self._heard[process] = (word, now)
            else:
                self._heard.setdefault(process, before)
        return sorted(
            process for process in said if now - self._heard[process][1] > self._deadline_s
        )
