"""Arguments of handlers, for `Checkpointer.save` and `Checkpointer.restore`."""

from holdfast_checkpointer.args import (
    CheckpointArgs,
    JsonRestore,
    JsonSave,
    PyTreeRestore,
    PyTreeSave,
    StandardRestore,
    StandardSave,
)

__all__ = [
    "CheckpointArgs",
    "JsonRestore",
    "JsonSave",
    "PyTreeRestore",
    "PyTreeSave",
    "StandardRestore",
    "StandardSave",
]
