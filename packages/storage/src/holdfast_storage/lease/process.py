"""The leases that this process holds: shared by its writers, released when it ends."""

from __future__ import annotations

import atexit
import concurrent.futures.thread  # noqa: F401 - registers its exit hook before ours, so ours runs first
import os
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast_storage.lease.holding import HeldLease

EXIT_PATIENCE_S = 10.0


class ProcessLeases:
    """The leases of one process, by their unique ids. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer may come in between
        self._held: dict[str, HeldLease] = {}

    def find(self, ident: str) -> HeldLease | None:
        """The lease of that id, if this process has it and keeps it."""
        with self._lock:
            held = self._held.get(ident)
        return held if held is not None and held.kept else None

    def add(self, held: HeldLease) -> None:
        """Knows one more."""
        with self._lock:
            self._held[held.ident] = held

    def forget(self, held: HeldLease) -> None:
        """Knows it no more."""
        with self._lock:
            self._held.pop(held.ident, None)

    def release_all(self) -> None:
        """Lets others proceed at once; after a while leaves the rest to their patience."""
        with self._lock:
            held = list(self._held.values())
        for lease in held:
            lease.release()
        for lease in held:
            lease.join(EXIT_PATIENCE_S / max(len(held), 1))

    def start_anew(self) -> None:
        """A forked child holds nothing: its parent does."""
        self._lock = threading.RLock()
        self._held = {}


process_leases = ProcessLeases()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=process_leases.start_anew)
# Imported before what waits for running saves, so that this hook runs after those are done.
getattr(threading, "_register_atexit", atexit.register)(process_leases.release_all)
