"""Options of saving and loading; `holdfast.Context` carries them."""

from holdfast_checkpointer.arrays.options import ArrayLoadOptions, ArraySaveOptions
from holdfast_checkpointer.options import ArrayOptions, AsyncOptions
from holdfast_checkpointer.safetensors.options import CheckpointLayout, SafetensorsOptions

__all__ = [
    "ArrayLoadOptions",
    "ArrayOptions",
    "ArraySaveOptions",
    "AsyncOptions",
    "CheckpointLayout",
    "SafetensorsOptions",
]
