"""The steps of a run behind the interface of Orbax's v0."""

from holdfast_manager.checkpoint_manager import (
    DEFAULT_ITEM_NAME,
    METADATA_ITEM_NAME,
    METRIC_ITEM_NAME,
    RESERVED_ITEM_NAMES,
    AbstractCheckpointManager,
    CheckpointManager,
    CheckpointManagerOptions,
    RootMetadata,
    SaveResult,
    StepAlreadyExistsError,
    StepMetadata,
    determine_default_item_mode_from_args,
)

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
