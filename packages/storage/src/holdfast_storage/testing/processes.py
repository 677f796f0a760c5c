"""Processes of a test: several in one, each of which dies by itself.

What a program writes into its marks is its process id; by that the next one knows that the
writer is gone. Here each process has an id of its own, and is gone once it has crashed.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import identity
from holdfast_storage.testing.faulty import Fault, FaultyBackend
from holdfast_storage.values import ByteRange, ObjectInfo, ObjectVersion, Precondition

_FIRST_PID = 1 << 23  # no system gives those out
_pids = itertools.count(_FIRST_PID)


class ProcessView(FaultyBackend):
    """What one process sees of a store.

    Args:
        inner: The store.
        pid: The process's id, as all others read it; by itself it reads its real one.
    """

    def __init__(self, inner: StorageBackend, pid: int) -> None:
        super().__init__(inner)
        self.pid = pid
        self._as_written = f'"pid":{os.getpid()},'.encode()
        self._as_stored = f'"pid":{pid},'.encode()

    def fail_at(self, number: int, fault: Fault) -> None:
        """Lets a fault happen at a later call; 1 is the next one that changes something."""
        self.faults = {len(self.calls) + number: fault}

    def die(self) -> None:
        """Ends the process: nothing that it is about to ask reaches the store."""
        self.crashed = True

    async def put(
        self,
        key: str,
        data: bytes,
        *,
        condition: Precondition | None = None,
        durable: bool = True,
        parents: bool = True,
    ) -> ObjectVersion:
        """See `StorageBackend.put`."""
        data = data.replace(self._as_written, self._as_stored)
        return await super().put(key, data, condition=condition, durable=durable, parents=parents)

    async def get(self, key: str, *, byte_range: ByteRange | None = None) -> bytes:
        """See `StorageBackend.get`."""
        data = await super().get(key, byte_range=byte_range)
        return data.replace(self._as_stored, self._as_written)

    async def read(self, key: str) -> tuple[ObjectInfo, bytes]:
        """See `StorageBackend.read`."""
        info, data = await super().read(key)
        return info, data.replace(self._as_stored, self._as_written)


class Processes:
    """The processes of a test that share a store.

    Args:
        store: What they share.
    """

    def __init__(self, store: StorageBackend) -> None:
        self._store = store
        self._started: dict[int, ProcessView] = {}

    def start(self) -> ProcessView:
        """A new process, alive."""
        pid = next(_pids)
        self._started[pid] = ProcessView(self._store, pid)
        return self._started[pid]

    @contextmanager
    def known_to_the_system(self) -> Iterator[None]:
        """Within the block the system answers for them: who has crashed is gone.

        So is whoever started elsewhere, as on a copy of the store that was made of it.
        """
        real = identity._exists
        with mock.patch.object(identity, "_exists", lambda pid: self._exists(pid, real)):
            yield

    def _exists(self, pid: int, real: object) -> bool:
        if pid >= _FIRST_PID:
            return pid in self._started and not self._started[pid].crashed
        return bool(callable(real) and real(pid))
