"""Folders that belong to this process: they go when it ends, or when the next one looks.

Each has a locked file beside it, held for as long as its process lives. Whoever finds a
folder whose file is not locked knows that its process was killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import weakref


class ScratchFolder:
    """A new folder of this process's; `remove` it, or it goes with the process.

    Args:
        prefix: How its name begins; folders of killed processes with this prefix are removed.
        base: The folder to make it in.
    """

    def __init__(self, prefix: str, base: str) -> None:
        made = tempfile.mkdtemp(prefix=prefix, dir=base)
        while (held := _hold(made, os.O_CREAT)) is None:  # taken for abandoned by another process
            made = tempfile.mkdtemp(prefix=prefix, dir=base)
        self.path = made
        self._held = held
        self._finalizer = weakref.finalize(self, _remove, made, os.getpid(), held)

    def remove(self) -> None:
        """Removes the folder and what is in it; again does nothing."""
        if self._finalizer.detach() is not None:
            _remove(self.path, os.getpid(), self._held)

    def let_go(self) -> None:
        """Closes what a fork copied; the parent goes on holding its folder."""
        os.close(self._held)


def remove_abandoned(prefix: str, base: str) -> None:
    """Removes what killed processes left in `base`: it would stay until somebody looks."""
    for entry in os.scandir(base):
        if not entry.name.startswith(prefix) or not entry.name.endswith(".alive"):
            continue
        try:
            descriptor = _hold(entry.path.removesuffix(".alive"), 0)
        except OSError:
            continue  # another user's, or gone by now
        if descriptor is not None:
            shutil.rmtree(entry.path.removesuffix(".alive"), ignore_errors=True)
            with contextlib.suppress(OSError):
                os.unlink(entry.path)
            os.close(descriptor)


def _hold(directory: str, create: int) -> int | None:
    """Locks a file beside a folder for as long as this process lives; None if another has it."""
    descriptor = os.open(f"{directory}.alive", os.O_RDWR | create, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    if os.fstat(descriptor).st_nlink == 0:  # removed while we waited for the lock
        os.close(descriptor)
        return None
    return descriptor


def _remove(directory: str, owner: int, held: int) -> None:
    if os.getpid() == owner:  # a forked child must not remove the parent's folder
        shutil.rmtree(directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            os.unlink(f"{directory}.alive")
            os.close(held)
