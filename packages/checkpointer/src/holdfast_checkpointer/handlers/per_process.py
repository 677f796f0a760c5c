"""Items of which each process of a job saves its own part, such as data iterators.

Each process writes into a folder of its own, and the files of all become one item. The item
then tells which processes saved it: a state that each has for itself says nothing to a job of
other processes, unless its object knows how to divide it anew.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Awaitable
from typing import Any

from holdfast_checkpointer.errors import ProcessCountError
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_storage import WriteArea

SAVED_BY = "_PROCESSES.json"
HOOK = "load_from_processes"


async def note_processes(area: WriteArea, job: Membership) -> None:
    """Writes down who saved an item."""
    await area.put(SAVED_BY, json.dumps({"processes": list(job.processes)}).encode())


class Divided:
    """An object that loads itself from what other processes saved.

    Args:
        target: It has the hook.
        processes: Those that saved.
    """

    def __init__(self, target: Any, processes: tuple[int, ...]) -> None:
        self.target = target
        self._processes = processes

    async def load(self, directory: Any) -> Awaitable[None]:
        """Calls the hook."""
        reads: Awaitable[None] = await getattr(self.target, HOOK)(directory, self._processes)
        return reads


def fitting(target: Any, folder: str, job: Membership) -> Any:
    """What loads an object from a folder that this job or another one saved.

    Raises:
        ProcessCountError: Other processes saved it, and the object has no hook for that.
    """
    saved_by = _saved_by(folder)
    if target is None or saved_by is None or saved_by == job.processes:
        return target
    if inspect.iscoroutinefunction(getattr(target, HOOK, None)):
        return Divided(target, saved_by)
    kind = type(target).__qualname__
    raise ProcessCountError(
        f"each of {len(saved_by)} processes saved a state of its own here ({_list(saved_by)}), "
        f"and {len(job.processes)} load ({_list(job.processes)}). {kind} was not changed. Give it "
        f"a coroutine method {HOOK}(directory, processes), which returns what brings it into a "
        "state made of theirs, or load in as many processes as saved"
    )


def _saved_by(folder: str) -> tuple[int, ...] | None:
    """Who saved; None if one process did, or Orbax, which does not tell."""
    try:
        with open(os.path.join(folder, SAVED_BY), "rb") as file:
            return tuple(json.load(file)["processes"])
    except FileNotFoundError:
        return None


def _list(processes: tuple[int, ...]) -> str:
    return ", ".join(map(str, processes[:8])) + (", ..." if len(processes) > 8 else "")
