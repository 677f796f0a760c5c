"""The steps of a run behind the interface of Orbax's v0: `CheckpointManager`."""

from holdfast_checkpointer.metadata import StepMetadata
from holdfast_manager.checkpoint_manager.interface import AbstractCheckpointManager
from holdfast_manager.checkpoint_manager.manager import CheckpointManager
from holdfast_manager.checkpoint_manager.names import (
    DEFAULT_ITEM_NAME,
    METADATA_ITEM_NAME,
    METRIC_ITEM_NAME,
    RESERVED_ITEM_NAMES,
    determine_default_item_mode_from_args,
)
from holdfast_manager.checkpoint_manager.options import CheckpointManagerOptions
from holdfast_manager.described import RootMetadata
from holdfast_manager.engine.results import SaveResult
from holdfast_manager.errors import StepAlreadyExistsError

__all__ = [
    "DEFAULT_ITEM_NAME",
    "METADATA_ITEM_NAME",
    "METRIC_ITEM_NAME",
    "RESERVED_ITEM_NAMES",
    "AbstractCheckpointManager",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "RootMetadata",
    "SaveResult",
    "StepAlreadyExistsError",
    "StepMetadata",
    "determine_default_item_mode_from_args",
]
