"""Save and load JAX PyTrees on any storage."""

from holdfast_checkpointer import args, errors, options
from holdfast_checkpointer.async_checkpointer import AsyncCheckpointer
from holdfast_checkpointer.checkpointables import (
    checkpointables_metadata,
    load_checkpointables,
    load_checkpointables_async,
    save_checkpointables,
    save_checkpointables_async,
)
from holdfast_checkpointer.checkpointer import Checkpointer
from holdfast_checkpointer.deletion import delete, delete_async
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.verification import VerifyReport
from holdfast_checkpointer.functions import (
    copy,
    copy_async,
    is_checkpoint,
    load,
    load_async,
    metadata,
    save,
    save_async,
    verify,
)
from holdfast_checkpointer.handlers.array import ArrayCheckpointHandler
from holdfast_checkpointer.handlers.base import AsyncCheckpointHandler, CheckpointHandler
from holdfast_checkpointer.handlers.composite import CompositeCheckpointHandler
from holdfast_checkpointer.handlers.constructor_options import CompositeOptions
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
from holdfast_checkpointer.items.tree_metadata import TreeMetadata
from holdfast_checkpointer.metadata import CheckpointMetadata, StepMetadata
from holdfast_checkpointer.options import Context
from holdfast_checkpointer.ready_made import PyTreeCheckpointer, StandardCheckpointer
from holdfast_checkpointer.safetensors.export import export_safetensors

PLACEHOLDER = ...

__all__ = [
    "PLACEHOLDER",
    "ArrayCheckpointHandler",
    "AsyncCheckpointHandler",
    "AsyncCheckpointer",
    "AsyncResponse",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CheckpointMetadata",
    "Checkpointer",
    "CompositeCheckpointHandler",
    "CompositeOptions",
    "Context",
    "DefaultCheckpointHandlerRegistry",
    "JaxRandomKeyCheckpointHandler",
    "JsonCheckpointHandler",
    "NumpyRandomKeyCheckpointHandler",
    "ProtoCheckpointHandler",
    "PyTreeCheckpointHandler",
    "PyTreeCheckpointer",
    "StandardCheckpointHandler",
    "StandardCheckpointer",
    "StepMetadata",
    "TreeMetadata",
    "VerifyReport",
    "args",
    "checkpointables_metadata",
    "copy",
    "copy_async",
    "create_default_handler_registry",
    "delete",
    "delete_async",
    "errors",
    "export_safetensors",
    "is_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "metadata",
    "options",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "verify",
]
