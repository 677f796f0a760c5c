"""How much memory a save or load may use on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast_checkpointer.options.checks import refuse_unless, refuse_unless_positive


@dataclass(frozen=True, kw_only=True)
class MemoryOptions:
    """How much memory a save or load may use on the way.

    Attributes:
        write_concurrent_bytes: Arrays are written in batches of about this many bytes, as
            `ArraySaveOptions.bytes_in_flight` says; None writes all at once.
        read_concurrent_bytes: About how many bytes may be under way while reading, as
            `ArrayLoadOptions.bytes_in_flight` says.
        transfer_concurrent_bytes: About how many bytes may be on the way from devices to the
            host at once; None starts all copies together. Every copy has ended when
            `save_async` returns, whatever this is.
        deepcopy_host_arrays: Copy NumPy arrays before `save_async` returns. With False they
            are saved as they are, and must not be changed before the save is done.
        is_prioritized_key_fn: Only None: all leaves are on the host when `save_async` returns.
        serialization_status_callback: Only None.
        regulator_options: Only None.
        expected_surge_bytes: Only None.
    """

    write_concurrent_bytes: int | None = None
    read_concurrent_bytes: int | None = None
    transfer_concurrent_bytes: int | None = None
    deepcopy_host_arrays: bool = True
    is_prioritized_key_fn: Any = None
    serialization_status_callback: Any = None
    regulator_options: Any = None
    expected_surge_bytes: int | float | None = None

    def __post_init__(self) -> None:
        for name in ("write", "read", "transfer"):
            option = f"{name}_concurrent_bytes"
            refuse_unless_positive(option, getattr(self, option))
        for option, because in _MEANINGLESS.items():
            value = getattr(self, option)
            refuse_unless(value is None, option, value, accepts="None", because=because)


@dataclass(frozen=True, kw_only=True)
class MemoryLimitOptions:
    """A bound of memory for a handler that is told to find its own.

    Attributes:
        max_transfer_concurrent_gb: How many gigabytes may be on the way from devices to the host
            at once; None for no bound.
    """

    max_transfer_concurrent_gb: float | None = None


_MEANINGLESS = {
    "is_prioritized_key_fn": (
        "every leaf is on the host when save_async returns, so none can change meanwhile"
    ),
    "serialization_status_callback": "a save is one commit; its response says when that is done",
    "regulator_options": "transfer_concurrent_bytes is a fixed bound, and is not regulated",
    "expected_surge_bytes": "nothing regulates by it; bound a save with transfer_concurrent_bytes",
}
