"""Calls that all processes of a job make, and how one that fails early is told to the others.

Processes meet by what they do to which place. One whose call fails before that is known,
because a path or an option is bad, cannot be met there. But the processes of a job make the
same calls: each counts its own, and waits under the number of its call for the word that
this call is void on another process.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence

from holdfast_checkpointer.multihost.errors import (
    CoordinationError,
    FailureReport,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.service import KeyTaken, KeyValueService

_log = logging.getLogger(__name__)
_SLICE_S = 30.0
_MET, _VOID = b"M", b"V"


class Call:
    """One call of this process, which every process makes.

    One key decides it, set once: all have met, or it is void.

    Args:
        service: Where the processes meet.
        key: Unique to this call, and the same on every process.
        me: This process.
        processes: Those that make the call.
        ordered: Whether the calls of this kind come in the same order on every process.

    Attributes:
        key: As given.
        ordered: As given.
    """

    def __init__(
        self,
        service: KeyValueService,
        key: str,
        *,
        me: int,
        processes: Sequence[int],
        ordered: bool = True,
    ) -> None:
        self.ordered = ordered
        self._service = service
        self.key = key
        self._me = me
        self._count = len(processes)

    async def meet(self) -> FailureReport | None:
        """Decides that all have met; gives what was said if it is void instead."""
        return await self._decide(_MET)

    async def void(self, error: BaseException, phase: str) -> bool:
        """Tells all others that this call fails everywhere; False if all have met before.

        If they cannot be told, they wait as for a process that does not come.
        """
        if isinstance(error, RemoteProcessError):  # of an earlier call; not told again as it is
            error = CoordinationError(str(error))
        report = FailureReport.of(error, self._me, phase)
        try:
            if await self._decide(_VOID + report.to_bytes()) is None:
                return False
        except CoordinationError:
            _log.warning("could not tell the other processes of %r", error, exc_info=True)
            return True
        await self.heard()
        return True

    async def word(self) -> FailureReport | None:
        """Waits for the decision: None if all have met, else what was said."""
        while True:
            with contextlib.suppress(TimeoutError):
                said = await self._service.get(f"{self.key}/word", timeout_s=_SLICE_S)
                return _report(said)

    async def heard(self) -> None:
        """Notes that this process knows the call to be void; the last one removes the keys."""
        with contextlib.suppress(CoordinationError):
            if await self._service.increment(f"{self.key}/heard") == self._count:
                await self.forget()

    async def forget(self) -> None:
        """Removes the keys."""
        await self._service.delete(self.key)

    async def _decide(self, word: bytes) -> FailureReport | None:
        try:
            await self._service.put(f"{self.key}/word", word)
        except KeyTaken:
            return await self.word()
        return _report(word)


def _report(word: bytes) -> FailureReport | None:
    return None if word == _MET else FailureReport.from_bytes(word.removeprefix(_VOID))
