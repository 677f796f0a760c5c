"""Handlers of named items: for types of your own, for one name, or for one context."""

from holdfast_checkpointer.handlers.v1.builtin import JsonHandler, ProtoHandler, PyTreeHandler
from holdfast_checkpointer.handlers.v1.protocols import (
    AbstractCheckpointable,
    Checkpointable,
    CheckpointableHandler,
    StatefulCheckpointable,
)
from holdfast_checkpointer.handlers.v1.registry import (
    CheckpointableHandlerRegistry,
    global_registry,
    local_registry,
    register_handler,
)

__all__ = [
    "AbstractCheckpointable",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "JsonHandler",
    "ProtoHandler",
    "PyTreeHandler",
    "StatefulCheckpointable",
    "global_registry",
    "local_registry",
    "register_handler",
]
