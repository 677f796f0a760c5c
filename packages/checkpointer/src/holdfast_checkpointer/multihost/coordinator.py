"""The processes of a job that save and load together."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence

from holdfast_checkpointer.multihost.board import Board
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.numbers import Numbers
from holdfast_checkpointer.multihost.operation import Operation
from holdfast_checkpointer.multihost.service import KeyValueService

_PREFIX = "holdfast"
_numbers = Numbers()


class Coordinator:
    """Begins what the processes do together.

    Several may be at work at once, in several threads: operations meet by their name, which
    says what is done to which checkpoint, and by how often that was done before.

    Args:
        service: Where the processes meet.
        me: This process.
        processes: Those that take part, this one included.
        primary: The one that decides.
        deadline_s: How long a process is waited for that makes no progress, in seconds.
        prefix: Put before the keys of this job.
    """

    def __init__(
        self,
        service: KeyValueService,
        *,
        me: int,
        processes: Sequence[int],
        primary: int,
        deadline_s: float = 300.0,
        prefix: str = "",
    ) -> None:
        if me not in processes or primary not in processes:
            raise ValueError(
                f"process {me} and the primary {primary} must take part; these do: "
                f"{sorted(processes)}"
            )
        self._service = service
        self.me = me
        self.processes = tuple(sorted(processes))
        self.primary = primary
        self._deadline_s = deadline_s
        self._prefix = prefix

    def operation(self, name: str, *, what: str = "", call: Call | None = None) -> Operation:
        """Begins one, to be entered with `async with`.

        Args:
            name: The same on every process; no two operations of one name at a time.
            what: For messages; the name by default.
            call: The call that it is part of. If that is void on one process before the others
                have met it here, it was never begun.
        """
        place = self._hashed(name)
        mine = f"{place}/{self.me}"
        number = _numbers.next(mine)
        return Operation(
            self._service,
            f"{_PREFIX}/{place}/{number}",
            what=what or name,
            me=self.me,
            processes=self.processes,
            primary=self.primary,
            deadline_s=self._deadline_s,
            board=Board(self._service, f"{_PREFIX}/{self._hashed('board')}", self.me),
            call=call,
            forget=functools.partial(_numbers.give_back, mine, number),
        )

    def call(self) -> Call:
        """The next call of this process that all make, by its number.

        Those of the main thread are counted for themselves: there the order is the program's.
        """
        main = threading.current_thread() is threading.main_thread()
        place = self._hashed("calls of the main thread" if main else "calls of other threads")
        number = _numbers.next(f"{place}/{self.me}")
        return Call(
            self._service,
            f"{_PREFIX}/{place}/{number}",
            me=self.me,
            processes=self.processes,
            ordered=main,
        )

    def _hashed(self, name: str) -> str:
        who = ",".join(map(str, self.processes))
        return hashlib.sha256(f"{self._prefix}\n{who}\n{name}".encode()).hexdigest()[:24]
