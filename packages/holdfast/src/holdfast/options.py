"""Options of saving and loading; `holdfast.Context` carries them."""

from holdfast_checkpointer.arrays.options import (
    ArrayLoadOptions,
    ArraySaveOptions,
    LoadAndBroadcastOptions,
    StorageOptions,
)
from holdfast_checkpointer.options import (
    ArrayOptions,
    AsyncOptions,
    AtomicityMode,
    AtomicityOptions,
    CheckpointablesOptions,
    DeletionOptions,
    FileOptions,
    GcsDeletionOptions,
    MemoryLimitOptions,
    MemoryOptions,
    MultiprocessingOptions,
    PathwaysOptions,
    PyTreeLoadOptions,
    PyTreeMetadataOptions,
    PyTreeOptions,
    PyTreeSaveOptions,
)
from holdfast_checkpointer.safetensors.options import CheckpointLayout, SafetensorsOptions

__all__ = [
    "ArrayLoadOptions",
    "ArrayOptions",
    "ArraySaveOptions",
    "AsyncOptions",
    "AtomicityMode",
    "AtomicityOptions",
    "CheckpointLayout",
    "CheckpointablesOptions",
    "DeletionOptions",
    "FileOptions",
    "GcsDeletionOptions",
    "LoadAndBroadcastOptions",
    "MemoryLimitOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeLoadOptions",
    "PyTreeMetadataOptions",
    "PyTreeOptions",
    "PyTreeSaveOptions",
    "SafetensorsOptions",
    "StorageOptions",
]
