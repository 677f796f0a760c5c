"""Save and load JAX PyTrees on any storage."""

from holdfast_checkpointer import args, errors, options
from holdfast_checkpointer.checkpointer import Checkpointer
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.verification import VerifyReport
from holdfast_checkpointer.functions import (
    copy,
    copy_async,
    delete,
    is_checkpoint,
    load,
    load_async,
    metadata,
    save,
    save_async,
    verify,
)
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.standard import StandardCheckpointHandler
from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_checkpointer.options import Context

PLACEHOLDER = ...

__all__ = [
    "PLACEHOLDER",
    "AsyncResponse",
    "CheckpointHandler",
    "CheckpointMetadata",
    "Checkpointer",
    "Context",
    "JsonCheckpointHandler",
    "PyTreeCheckpointHandler",
    "StandardCheckpointHandler",
    "VerifyReport",
    "args",
    "copy",
    "copy_async",
    "delete",
    "errors",
    "is_checkpoint",
    "load",
    "load_async",
    "metadata",
    "options",
    "save",
    "save_async",
    "verify",
]
