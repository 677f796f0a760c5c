"""Saving one checkpoint in parts that are committed together."""

from holdfast_checkpointer.partial import (
    finalize,
    save,
    save_async,
    save_checkpointables,
    save_checkpointables_async,
)

__all__ = [
    "finalize",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
]
