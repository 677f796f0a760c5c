"""How to save and load: immutable options, and the context that carries them.

An explicit `context=` argument beats `with Context(...)`, which beats the defaults. A
context entered in one thread is not seen by another, so a running save never changes.

Every option of Orbax's has its place here. Those that mean nothing to holdfast accept their
default; any other value is refused with an `UnsupportedOptionError` that says what is done
instead.
"""

from holdfast_checkpointer.arrays.options import ArrayLoadOptions, ArraySaveOptions
from holdfast_checkpointer.options.array import ArrayOptions
from holdfast_checkpointer.options.checkpointables import CheckpointablesOptions
from holdfast_checkpointer.options.context import Context, current
from holdfast_checkpointer.options.files import (
    AtomicityMode,
    AtomicityOptions,
    DeletionOptions,
    FileOptions,
    GcsDeletionOptions,
)
from holdfast_checkpointer.options.memory import MemoryLimitOptions, MemoryOptions
from holdfast_checkpointer.options.operation import (
    AsyncOptions,
    MultiprocessingOptions,
    PathwaysOptions,
)
from holdfast_checkpointer.options.tree import (
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
    "Context",
    "DeletionOptions",
    "FileOptions",
    "GcsDeletionOptions",
    "MemoryLimitOptions",
    "MemoryOptions",
    "MultiprocessingOptions",
    "PathwaysOptions",
    "PyTreeLoadOptions",
    "PyTreeMetadataOptions",
    "PyTreeOptions",
    "PyTreeSaveOptions",
    "SafetensorsOptions",
    "current",
]
