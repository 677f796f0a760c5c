"""The threads that wait for disks, shared by all places that may be on one file system.

A process may save into thousands of folders: threads of their own would pile up. One pool for
everything, on the other hand, would let a network mount that hangs hold up the local disk.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from holdfast_storage.threads import StartedPool

_THREADS = 8
_OF_MOUNTS = ("media", "mnt", "net", "run")  # each folder in these is a file system of its own


@dataclass(frozen=True)
class Pools:
    """Threads for operations, and those that a sync hands its files to.

    Two, for the first wait for the second.
    """

    work: StartedPool
    sync: StartedPool


_lock = threading.Lock()
_pools: dict[str, Pools] = {}


def pools_for(root: str) -> Pools:
    """The pools of the file system that `root` is probably on; told by its name, without I/O."""
    area = area_of(root)
    with _lock:
        found = _pools.get(area)
        if found is None:
            found = _pools[area] = Pools(
                StartedPool(_THREADS, "holdfast-local"),
                StartedPool(_THREADS // 2, "holdfast-sync"),
            )
        return found


def area_of(root: str) -> str:
    """The first folder of a path, and the second where mounts lie in the first.

    Examples:
        >>> area_of("/scratch/team/run"), area_of("/mnt/nfs/run"), area_of("/")
        ('scratch', 'mnt/nfs', '')
    """
    first, *below = root.strip("/").split("/")
    return f"{first}/{below[0]}" if below and first in _OF_MOUNTS else first


def _forget_after_fork() -> None:
    """Threads do not survive a fork."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
