"""One thing that several processes do together, and how it ends for all of them.

Every operation has one key, `end`, that is set once: by the primary with the result, or by
whichever process fails first with a report. Every process waits for it from the beginning,
so a failure reaches all others at once, whatever they are doing. Inside, values go to the
primary (`gather`) and from it (`broadcast`): two messages for each process and phase.
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
from holdfast_checkpointer.multihost.errors import (
    CoordinationError,
    FailureReport,
    ProcessStalledError,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.service import KeyTaken, KeyValueService

T = TypeVar("T")
_log = logging.getLogger(__name__)
_FAILED, _DONE = b"F", b"D"
_SLICE_S = 30.0
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
    ) -> None:
        self._service = service
        self._key = key
        self._what = what
        self.me = me
        self.processes = tuple(processes)
        self.primary = primary
        self._deadline_s = deadline_s
        self._phase = "its beginning"
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
        if error is not None:
            await self.fail(error)
        self._end.cancel()
        await asyncio.wait([self._end])
        with contextlib.suppress(CoordinationError):
            if error is not None and not self.is_primary:
                await self._service.put(f"{self._key}/stopped/{self.me}", b"", overwrite=True)
            if await self._service.increment(f"{self._key}/left") == len(self.processes):
                await self._service.delete(self._key)

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
            # Nobody else sets this key: a put whose reply was lost may be sent once more.
            put = self._service.put(self._at(phase, self.me), value, overwrite=True)
            await self.until_failure(put)
            return None
        others = await self.until_failure(self._collect(phase))
        return {**others, self.me: value}

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
                await self.until_failure(self._service.put(key, value, overwrite=True))
            return value
        return await self.until_failure(self._await_value(key, phase))

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
        pause = _FIRST_PAUSE_S
        while wanted:
            found = await self._service.list(prefix)
            by_process = {int(key.rpartition("/")[2]): value for key, value in found.items()}
            missing = wanted - by_process.keys()
            if not missing:
                return {process: by_process[process] for process in wanted}
            if patience.saw(len(by_process)):
                self.advance()
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
            raise ProcessStalledError(self._what, phase, stalled, self._deadline_s)
        self.advance()

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
        while not (await asyncio.wait([self._end], timeout=self._slice_s))[0]:
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
            raise ProcessStalledError(self._what, phase, [self.primary], self._deadline_s)

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
            if not self._end.done():
                await asyncio.wait([task, self._end], return_when=asyncio.FIRST_COMPLETED)
            if self._end.done():
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
        assert self._end is not None
        said = self._end.result()
        if said[:1] == _DONE:
            return
        raise FailureReport.from_bytes(said[1:]).as_error(self._what)

    async def _tick(self) -> None:
        """Publishes progress, a few times within the deadline of those that wait."""
        while True:
            await asyncio.sleep(self._deadline_s / 4)
            if self._steps == self._published:
                continue
            self._published = self._steps
            with contextlib.suppress(CoordinationError):
                key = f"{self._key}/progress/{self.me}"
                await self._service.put(key, str(self._steps).encode(), overwrite=True)


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
