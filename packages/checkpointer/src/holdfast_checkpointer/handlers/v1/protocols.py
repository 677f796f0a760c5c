"""What users implement: handlers of their types, and objects that save themselves.

All shaped as Orbax v1's, so that code written for it runs unchanged.
"""

from __future__ import annotations

from collections.abc import Awaitable
from os import PathLike
from typing import Any, Protocol, runtime_checkable

Checkpointable = Any
"""Anything that some handler saves."""

AbstractCheckpointable = Any
"""What says how to load an item: a target, a class, or an object that loads itself."""


@runtime_checkable
class PathAwaitingCreation(Protocol):
    """A directory that may not exist yet."""

    def __truediv__(self, name: str | PathLike[str]) -> PathAwaitingCreation:
        """A directory or file below this one, which awaits the same creation."""
        ...

    @property
    def path(self) -> Any:
        """The path, to be computed with; it may not exist yet."""
        ...

    async def await_creation(self) -> Any:
        """Returns the path once the directory exists."""
        ...


@runtime_checkable
class StatefulCheckpointable(Protocol):
    """An object that saves and loads itself, such as a data iterator.

    Each process of a job saves its own, in files that are called by `jax.process_index()`; two
    processes may write one file only if both write the same into it. A job of other processes
    refuses to load it (`ProcessCountError`) unless it also has

        async def load_from_processes(self, directory, processes) -> Awaitable[None]

    with the tuple of the processes that saved. The body of `save` runs before `save_async`
    returns, the awaitable it gives in the background; what it writes is part of the checkpoint's
    one commit.
    """

    async def save(self, directory: PathAwaitingCreation) -> Awaitable[None]:
        """Takes a snapshot, and returns what writes it into the directory."""
        ...

    async def load(self, directory: Any) -> Awaitable[None]:
        """Returns what reads the directory and brings this object into that state."""
        ...


@runtime_checkable
class CheckpointableHandler(Protocol):
    """Saves and loads one kind of item. Made without arguments, once per save or load.

    The body of `save` runs before `save_async` returns, the awaitable it gives in the
    background; what it writes is part of the checkpoint's one commit.
    """

    async def save(self, directory: PathAwaitingCreation, checkpointable: Any) -> Awaitable[None]:
        """Takes a snapshot of the item, and returns what writes it into the directory."""
        ...

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Awaitable[Any]:
        """Returns what reads the item; None as the abstract one loads it as it was saved."""
        ...

    async def metadata(self, directory: Any) -> Any:
        """Says what the item holds without reading its values."""
        ...

    def is_handleable(self, checkpointable: Any) -> bool:
        """Whether `save` takes this."""
        ...

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        """Whether `load` takes this; None leaves it to what the checkpoint records."""
        ...
