"""Which handlers save and load the items of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CheckpointablesOptions:
    """Which handlers save and load the items of a checkpoint.

    Attributes:
        registry: See `handlers.local_registry`; None stands for the global one.
    """

    registry: Any = None
