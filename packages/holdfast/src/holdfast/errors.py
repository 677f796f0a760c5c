"""Every exception that holdfast raises on purpose; all are `HoldfastError`.

Each is also the builtin exception that callers already catch: a checkpoint that is not
there is a `FileNotFoundError`, one that is in the way a `FileExistsError`, a target that
does not fit a `ValueError`.
"""

from holdfast_checkpointer.errors import (
    AlreadyExistsError,
    InvalidLayoutError,
    NoEntryError,
    PlacementError,
    TensorNotFoundError,
    TreeMismatchError,
    UnsupportedLeafError,
    UnsupportedOptionError,
)
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_metadata.errors import HoldfastError, MetadataError, NewerFormatError
from holdfast_storage.errors import (
    AttemptLostError,
    CheckpointChangedError,
    CheckpointDeletedError,
    CheckpointNotFoundError,
    CommitConflictError,
    CommitError,
    CommitUnknownError,
    DamagedCheckpointError,
    DestinationOccupiedError,
    IncompleteCheckpointError,
    InvalidKeyError,
    InvalidURLError,
    ObjectExistsError,
    ObjectNotFoundError,
    PreconditionFailedError,
    RecordUnreadableError,
    StorageError,
    StorageFullError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
    UnknownSchemeError,
    UnsupportedOperationError,
)

__all__ = [
    "AlreadyExistsError",
    "AttemptLostError",
    "CheckpointChangedError",
    "CheckpointDeletedError",
    "CheckpointNotFoundError",
    "CommitConflictError",
    "CommitError",
    "CommitUnknownError",
    "DamagedCheckpointError",
    "DestinationOccupiedError",
    "HoldfastError",
    "IncompleteCheckpointError",
    "InvalidKeyError",
    "InvalidLayoutError",
    "InvalidURLError",
    "MetadataError",
    "NewerFormatError",
    "NoEntryError",
    "ObjectExistsError",
    "ObjectNotFoundError",
    "PlacementError",
    "PreconditionFailedError",
    "RecordUnreadableError",
    "StepAlreadyExistsError",
    "StepNotFoundError",
    "StorageError",
    "StorageFullError",
    "StoragePermissionError",
    "StorageTimeoutError",
    "TensorNotFoundError",
    "TransientStorageError",
    "TreeMismatchError",
    "UnknownSchemeError",
    "UnsupportedLeafError",
    "UnsupportedOperationError",
    "UnsupportedOptionError",
]
