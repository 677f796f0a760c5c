"""Names that a manager gives, or does not give, to items."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer.engine.names import AUTO, METRICS, ORBAX_COMMIT, ORBAX_MARKER
from holdfast_checkpointer.handlers.arguments import is_arguments

DEFAULT_ITEM_NAME = "default"
"""The folder of an item without a name."""

METRIC_ITEM_NAME = METRICS
"""The folder of the metrics of a step."""

METADATA_ITEM_NAME = "metadata"
"""The folder in a run that holds what was stored for all of it."""

RESERVED_ITEM_NAMES = [AUTO, ORBAX_MARKER, ORBAX_COMMIT]
"""What no item can be called."""


def determine_default_item_mode_from_args(args: Any) -> bool:
    """Whether arguments are those of one item without a name, and not of several by name."""
    return not (is_arguments(args) and isinstance(args, Mapping))
