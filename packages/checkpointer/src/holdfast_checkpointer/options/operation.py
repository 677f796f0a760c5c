"""Who takes part in a save or load, how long it may take, and who is told."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.options.checks import refuse_unless


@dataclass(frozen=True, kw_only=True)
class AsyncOptions:
    """How long background work may take, and who is told of it.

    Attributes:
        timeout_secs: Deadline of one whole save or load, in seconds. Every storage
            request has a shorter one of its own.
        post_finalization_callback: Called without arguments after each commit, when the
            checkpoint is there to be loaded, and before the save's response is done. Not
            called after a failure. It may load, but not wait for the save it is told of. What
            it raises is logged: the checkpoint is committed all the same.
        create_directories_asynchronously: Always so: no directory is made before the
            snapshot is taken. False is refused.
        barrier_sync_fn: Only None: processes meet in the key/value store of JAX's runtime.
    """

    timeout_secs: float = 7200.0
    post_finalization_callback: Callable[[], Any] | None = None
    create_directories_asynchronously: bool = True
    barrier_sync_fn: Any = None

    def __post_init__(self) -> None:
        if not self.timeout_secs > 0:
            raise ValueError(f"timeout_secs must be positive, got {self.timeout_secs!r}")
        callback = self.post_finalization_callback
        if callback is not None and not callable(callback):
            raise ValueError(
                f"post_finalization_callback must be None or callable, got {callback!r}"
            )
        refuse_unless(
            self.create_directories_asynchronously is True,
            "create_directories_asynchronously",
            self.create_directories_asynchronously,
            accepts="True",
            because="a save makes no storage request before its snapshot is taken",
        )
        refuse_unless(
            self.barrier_sync_fn is None,
            "barrier_sync_fn",
            self.barrier_sync_fn,
            accepts="None",
            because="processes meet in the key/value store of JAX's runtime, not in barriers",
        )


@dataclass(frozen=True, kw_only=True)
class MultiprocessingOptions:
    """Which JAX processes of a job save and load together.

    Attributes:
        primary_host: The process that decides and commits; None for the first that takes part.
        active_processes: The processes that take part; None for all.
        barrier_sync_key_prefix: Put before the keys under which the processes meet.
        deadline_secs: How long the others wait for a process that makes no progress; they then
            fail, and name it.
    """

    primary_host: int | None = 0
    active_processes: AbstractSet[int] | None = None
    barrier_sync_key_prefix: str | None = None
    deadline_secs: float = 300.0

    def __post_init__(self) -> None:
        if self.primary_host is not None and not _is_index(self.primary_host):
            raise ValueError(
                f"primary_host must be the index of a process or None, got {self.primary_host!r}"
            )
        active = self.active_processes
        if active is not None:
            if not active or not all(_is_index(index) for index in active):
                raise ValueError(
                    f"active_processes must be None or a set of process indices, got {active!r}"
                )
            if self.primary_host is not None and self.primary_host not in active:
                raise ValueError(
                    f"primary_host={self.primary_host} is not among active_processes="
                    f"{sorted(active)}"
                )
            object.__setattr__(self, "active_processes", frozenset(active))
        prefix = self.barrier_sync_key_prefix
        if prefix is not None and not isinstance(prefix, str):
            raise ValueError(f"barrier_sync_key_prefix must be text or None, got {prefix!r}")
        if not self.deadline_secs > 0:
            raise ValueError(f"deadline_secs must be positive, got {self.deadline_secs!r}")

    def check_against(self, processes: int) -> None:
        """Refuses indices of processes that the job does not have.

        Raises:
            ValueError: The message says which there are.
        """
        named = {*(self.active_processes or ()), self.primary_host or 0}
        absent = sorted(index for index in named if index >= processes)
        if absent:
            raise ValueError(
                f"MultiprocessingOptions names the processes {absent}, but this job has "
                f"{processes}: 0 to {processes - 1}"
            )


@dataclass(frozen=True, kw_only=True)
class PathwaysOptions:
    """Options of Pathways, which holdfast does not run on.

    Attributes:
        checkpointing_impl: Only None is accepted.
    """

    checkpointing_impl: Any = None

    def __post_init__(self) -> None:
        refuse_unless(
            self.checkpointing_impl is None,
            "checkpointing_impl",
            self.checkpointing_impl,
            accepts="None",
            because="holdfast reads and writes from JAX's own processes, not through Pathways",
        )


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
