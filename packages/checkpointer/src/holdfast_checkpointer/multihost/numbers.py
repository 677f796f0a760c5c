"""How often something was begun in this process."""

from __future__ import annotations

import collections
import threading


class Numbers:
    """Counters by name, from 1; from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count: collections.Counter[str] = collections.Counter()

    def next(self, name: str) -> int:
        """Counts once more and returns the count."""
        with self._lock:
            self._count[name] += 1
            return self._count[name]

    def give_back(self, name: str, number: int) -> None:
        """Takes the last count back, unless one more was taken since."""
        with self._lock:
            if self._count[name] == number:
                self._count[name] -= 1
