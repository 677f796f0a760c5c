"""Handlers, and registries of them: of checkpointers (v0), and of named items (v1)."""

from holdfast_checkpointer.handlers.array import ArrayCheckpointHandler
from holdfast_checkpointer.handlers.base import AsyncCheckpointHandler, CheckpointHandler
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.proto import ProtoCheckpointHandler
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.random_key import (
    JaxRandomKeyCheckpointHandler,
    NumpyRandomKeyCheckpointHandler,
)
from holdfast_checkpointer.handlers.registry import (
    CheckpointHandlerRegistry,
    DefaultCheckpointHandlerRegistry,
    create_default_handler_registry,
)
from holdfast_checkpointer.handlers.standard import StandardCheckpointHandler
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
    "ArrayCheckpointHandler",
    "AsyncCheckpointHandler",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "Checkpointable",
    "CheckpointableHandler",
    "CheckpointableHandlerRegistry",
    "CompositeCheckpointHandler",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "JsonHandler",
    "NumpyRandomKeyCheckpointHandler",
    "ProtoCheckpointHandler",
    "ProtoHandler",
    "PyTreeCheckpointHandler",
    "PyTreeHandler",
    "StandardCheckpointHandler",
    "StatefulCheckpointable",
    "create_default_handler_registry",
    "global_registry",
    "local_registry",
    "register_handler",
]
