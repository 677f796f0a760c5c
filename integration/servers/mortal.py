"""A server that may be killed, and that starts again on the same port with what it had stored."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

from integration.servers import s3
from integration.servers.processes import free_port
from integration.servers.proxy import FaultProxy


class Mortal:
    """One server through its lives.

    Attributes:
        server: The process of this life.
    """

    def __init__(self, start: Callable[[], AbstractContextManager[s3.S3Server]]) -> None:
        self._start = start
        self._life = contextlib.ExitStack()
        # A server ends with the thread that started it (see `processes`): this one stays.
        self._starter = ThreadPoolExecutor(1)
        self.start()

    def start(self) -> None:
        """Begins a life; returns when it answers."""
        self.server = self._starter.submit(self._life.enter_context, self._start()).result()

    def kill(self) -> None:
        """SIGKILL. Returns when the process is gone."""
        os.kill(self.server.pid, signal.SIGKILL)
        self._life.close()

    def close(self) -> None:
        """Ends it for good."""
        self._life.close()
        self._starter.shutdown()

    @contextlib.contextmanager
    def killed_at(self, proxy: FaultProxy, mutation: int, *, back_after_s: float) -> Iterator[None]:
        """Kills it once so many changes were asked for, and starts it again.

        Args:
            proxy: Stands in front, and counts.
            mutation: The change, from 1, during which it dies.
            back_after_s: How long it stays away; infinite means until the block is left.
        """
        left, died = threading.Event(), threading.Event()

        def reap() -> None:
            while len(proxy.mutations) < mutation and not left.is_set():
                time.sleep(0.0005)
            self.kill()
            died.set()
            left.wait(None if back_after_s == float("inf") else back_after_s)
            self.start()

        reaper = threading.Thread(target=reap)
        reaper.start()
        try:
            yield  # what is raised in the block goes first
            assert died.is_set(), f"over after {len(proxy.mutations)} changes"
        finally:
            left.set()
            reaper.join()


@contextlib.contextmanager
def mortal(kind: str, folder: Path) -> Iterator[Mortal]:
    """`ministack` or `seaweedfs`, with its objects in a folder."""
    ports = [free_port() for _ in range(s3.SEAWEEDFS_PORTS)]
    starts: dict[str, Callable[[], AbstractContextManager[s3.S3Server]]] = {
        "ministack": lambda: s3.ministack(ports[0], folder),
        "seaweedfs": lambda: s3.seaweedfs(ports, folder),
    }
    found = Mortal(starts[kind])
    try:
        yield found
    finally:
        found.close()
