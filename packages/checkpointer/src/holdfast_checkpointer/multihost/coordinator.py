"""The processes of a job that save and load together."""

from __future__ import annotations

import collections
import hashlib
import threading
from collections.abc import Sequence

from holdfast_checkpointer.multihost.operation import Operation
from holdfast_checkpointer.multihost.service import KeyValueService

_PREFIX = "holdfast"


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

    def operation(self, name: str, *, what: str = "") -> Operation:
        """Begins one, to be entered with `async with`.

        Args:
            name: The same on every process; no two operations of one name at a time.
            what: For messages; the name by default.
        """
        who = ",".join(map(str, self.processes))
        place = hashlib.sha256(f"{self._prefix}\n{who}\n{name}".encode()).hexdigest()[:24]
        number = _numbers.next(f"{place}/{self.me}")
        return Operation(
            self._service,
            f"{_PREFIX}/{place}/{number}",
            what=what or name,
            me=self.me,
            processes=self.processes,
            primary=self.primary,
            deadline_s=self._deadline_s,
        )


class _Numbers:
    """How often each operation was begun in this process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: collections.Counter[str] = collections.Counter()

    def next(self, place: str) -> int:
        with self._lock:
            self._count[place] += 1
            return self._count[place]


_numbers = _Numbers()
