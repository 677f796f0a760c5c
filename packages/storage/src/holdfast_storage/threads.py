"""Thread pools whose threads exist from the start.

From CPython 3.12 on no thread can be started once the main thread has ended, which is
when a save that is still running is waited for. A pool that starts its threads on demand
would fail the save there.
"""

from __future__ import annotations

import concurrent.futures
import threading


class StartedPool(concurrent.futures.ThreadPoolExecutor):
    """A `ThreadPoolExecutor` that never has to start a thread later.

    Args:
        threads: How many.
        name: Prefix of their names.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(max_workers=threads, thread_name_prefix=name)
        together = threading.Barrier(threads + 1)
        for _ in range(threads):
            self.submit(together.wait)  # none is idle yet, so each starts a thread
        together.wait()
