"""Which handlers save and load the items of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

from holdfast_checkpointer.handlers.v1.registry import (
    GLOBAL_VIEW,
    CheckpointableHandlerRegistry,
)

_METHODS = ("get", "has", "get_all_entries", "get_secondary_typestrs")


@dataclass(frozen=True, kw_only=True)
class CheckpointablesOptions:
    """Which handlers save and load the items of a checkpoint.

    Attributes:
        registry: See `handlers.local_registry`; by default a view of the global one, through
            which nothing can be added.
    """

    registry: CheckpointableHandlerRegistry = field(default_factory=lambda: GLOBAL_VIEW)

    def __post_init__(self) -> None:
        missing = [name for name in _METHODS if not callable(getattr(self.registry, name, None))]
        if missing:
            raise ValueError(
                f"registry must be a handlers.CheckpointableHandlerRegistry, got "
                f"{self.registry!r}, which has no {', '.join(missing)}"
            )
