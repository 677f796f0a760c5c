"""Checkpointing for JAX on local disk, GCS and S3: no crash loses a step.

    import holdfast as hf

    hf.save("runs/model", params)
    params = hf.load("runs/model")

A name is imported when it is first used, so `import holdfast` costs nothing: it loads
neither JAX nor any cloud SDK, and initialises no device.
"""

from __future__ import annotations

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from holdfast import (
        args,
        arrays,
        checkpoint_manager,
        checkpoint_utils,
        errors,
        handlers,
        options,
        partial,
        path,
        training,
        tree,
    )
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
    from holdfast_checkpointer.handlers.v1.protocols import (
        CheckpointableHandler,
        StatefulCheckpointable,
    )
    from holdfast_checkpointer.items.tree_metadata import TreeMetadata
    from holdfast_checkpointer.metadata import CheckpointMetadata, StepMetadata
    from holdfast_checkpointer.options import Context
    from holdfast_checkpointer.ready_made import PyTreeCheckpointer, StandardCheckpointer
    from holdfast_checkpointer.safetensors.export import export_safetensors
    from holdfast_manager.checkpoint_manager.interface import AbstractCheckpointManager
    from holdfast_manager.checkpoint_manager.manager import CheckpointManager
    from holdfast_manager.checkpoint_manager.options import CheckpointManagerOptions

PLACEHOLDER: types.EllipsisType = ...
"""In a target of `load`: skip this leaf. It must have been saved, and comes back as it is."""

# Where each public name comes from. Kept beside the imports above: type checkers read
# those, the interpreter reads these, and a test compares the two.
_SOURCES = {
    "AbstractCheckpointManager": "holdfast_manager.checkpoint_manager.interface",
    "ArrayCheckpointHandler": "holdfast_checkpointer.handlers.array",
    "AsyncCheckpointHandler": "holdfast_checkpointer.handlers.base",
    "AsyncCheckpointer": "holdfast_checkpointer.async_checkpointer",
    "AsyncResponse": "holdfast_checkpointer.engine.response",
    "CheckpointHandler": "holdfast_checkpointer.handlers.base",
    "CheckpointHandlerRegistry": "holdfast_checkpointer.handlers.registry",
    "CheckpointManager": "holdfast_manager.checkpoint_manager.manager",
    "CheckpointManagerOptions": "holdfast_manager.checkpoint_manager.options",
    "CheckpointMetadata": "holdfast_checkpointer.metadata",
    "CheckpointableHandler": "holdfast_checkpointer.handlers.v1.protocols",
    "Checkpointer": "holdfast_checkpointer.checkpointer",
    "CompositeCheckpointHandler": "holdfast_checkpointer.handlers.composite",
    "CompositeOptions": "holdfast_checkpointer.handlers.constructor_options",
    "Context": "holdfast_checkpointer.options",
    "DefaultCheckpointHandlerRegistry": "holdfast_checkpointer.handlers.registry",
    "JaxRandomKeyCheckpointHandler": "holdfast_checkpointer.handlers.random_key",
    "JsonCheckpointHandler": "holdfast_checkpointer.handlers.json",
    "NumpyRandomKeyCheckpointHandler": "holdfast_checkpointer.handlers.random_key",
    "ProtoCheckpointHandler": "holdfast_checkpointer.handlers.proto",
    "PyTreeCheckpointHandler": "holdfast_checkpointer.handlers.pytree",
    "PyTreeCheckpointer": "holdfast_checkpointer.ready_made",
    "StandardCheckpointHandler": "holdfast_checkpointer.handlers.standard",
    "StandardCheckpointer": "holdfast_checkpointer.ready_made",
    "StatefulCheckpointable": "holdfast_checkpointer.handlers.v1.protocols",
    "StepMetadata": "holdfast_checkpointer.metadata",
    "TreeMetadata": "holdfast_checkpointer.items.tree_metadata",
    "VerifyReport": "holdfast_checkpointer.engine.verification",
    "checkpointables_metadata": "holdfast_checkpointer.checkpointables",
    "copy": "holdfast_checkpointer.functions",
    "copy_async": "holdfast_checkpointer.functions",
    "create_default_handler_registry": "holdfast_checkpointer.handlers.registry",
    "delete": "holdfast_checkpointer.deletion",
    "delete_async": "holdfast_checkpointer.deletion",
    "export_safetensors": "holdfast_checkpointer.safetensors.export",
    "is_checkpoint": "holdfast_checkpointer.functions",
    "load": "holdfast_checkpointer.functions",
    "load_async": "holdfast_checkpointer.functions",
    "load_checkpointables": "holdfast_checkpointer.checkpointables",
    "load_checkpointables_async": "holdfast_checkpointer.checkpointables",
    "metadata": "holdfast_checkpointer.functions",
    "save": "holdfast_checkpointer.functions",
    "save_async": "holdfast_checkpointer.functions",
    "save_checkpointables": "holdfast_checkpointer.checkpointables",
    "save_checkpointables_async": "holdfast_checkpointer.checkpointables",
    "verify": "holdfast_checkpointer.functions",
}
# Orbax's names of what is here under another: told, not carried over.
_RENAMED = {
    "ArrayRestoreArgs": "args.ArrayRestoreArgs",
    "RestoreArgs": "args.RestoreArgs",
    "SaveArgs": "args.SaveArgs",
    "is_orbax_checkpoint": "is_checkpoint",
    "load_pytree": "load",
    "load_pytree_async": "load_async",
    "pytree_metadata": "metadata",
    "save_pytree": "save",
    "save_pytree_async": "save_async",
}
_SUBMODULES = frozenset(
    {
        "args",
        "arrays",
        "checkpoint_manager",
        "checkpoint_utils",
        "errors",
        "handlers",
        "options",
        "partial",
        "path",
        "training",
        "tree",
    }
)

__all__ = [
    "PLACEHOLDER",
    "AbstractCheckpointManager",
    "ArrayCheckpointHandler",
    "AsyncCheckpointHandler",
    "AsyncCheckpointer",
    "AsyncResponse",
    "CheckpointHandler",
    "CheckpointHandlerRegistry",
    "CheckpointManager",
    "CheckpointManagerOptions",
    "CheckpointMetadata",
    "CheckpointableHandler",
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
    "StatefulCheckpointable",
    "StepMetadata",
    "TreeMetadata",
    "VerifyReport",
    "args",
    "arrays",
    "checkpoint_manager",
    "checkpoint_utils",
    "checkpointables_metadata",
    "copy",
    "copy_async",
    "create_default_handler_registry",
    "delete",
    "delete_async",
    "errors",
    "export_safetensors",
    "handlers",
    "is_checkpoint",
    "load",
    "load_async",
    "load_checkpointables",
    "load_checkpointables_async",
    "metadata",
    "options",
    "partial",
    "path",
    "save",
    "save_async",
    "save_checkpointables",
    "save_checkpointables_async",
    "training",
    "tree",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"holdfast.{name}")
    source = _SOURCES.get(name)
    if source is None:
        hint = f"; its name is {_RENAMED[name]!r}" if name in _RENAMED else ""
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(source), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
