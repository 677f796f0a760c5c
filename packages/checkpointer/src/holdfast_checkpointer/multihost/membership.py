"""Which processes of a job take part, and which of them this one is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax

from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.coordinator import Coordinator

if TYPE_CHECKING:
    from holdfast_checkpointer.options import MultiprocessingOptions


@dataclass(frozen=True)
class Membership:
    """A process and its fellows.

    Attributes:
        me: This process.
        processes: Those that take part, in order.
        primary: The one that decides and commits.
        prefix: Put before the keys under which they meet.
    """

    me: int = 0
    processes: tuple[int, ...] = (0,)
    primary: int = 0
    prefix: str = ""

    @classmethod
    def of(cls, options: MultiprocessingOptions) -> Membership:
        """What a caller's options say of this job.

        Raises:
            ValueError: They name processes that the job does not have, or leave out this one.
        """
        count = jax.process_count()
        options.check_against(count)
        if count == 1:
            return cls()
        active = options.active_processes
        processes = tuple(sorted(active)) if active is not None else tuple(range(count))
        me = jax.process_index()
        if me not in processes:
            raise ValueError(
                f"process {me} takes no part in this: active_processes={list(processes)}; call "
                "it in those processes only"
            )
        primary = options.primary_host if options.primary_host is not None else processes[0]
        return cls(me, processes, primary, options.barrier_sync_key_prefix or "")

    @property
    def alone(self) -> bool:
        """Whether nobody else takes part."""
        return len(self.processes) == 1

    @property
    def is_primary(self) -> bool:
        """Whether this process decides."""
        return self.me == self.primary

    def coordinator(self, deadline_s: float) -> Coordinator:
        """How these processes meet."""
        return Coordinator(
            jax_service.JaxService(),
            me=self.me,
            processes=self.processes,
            primary=self.primary,
            deadline_s=deadline_s,
            prefix=self.prefix,
        )
