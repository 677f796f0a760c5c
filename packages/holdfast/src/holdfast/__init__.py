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
    from holdfast import args, errors, options, training
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

PLACEHOLDER: types.EllipsisType = ...
"""In a target of `load`: skip this leaf. It must have been saved, and comes back as it is."""

# Where each public name comes from. Kept beside the imports above: type checkers read
# those, the interpreter reads these, and a test compares the two.
_SOURCES = {
    "AsyncResponse": "holdfast_checkpointer.engine.response",
    "CheckpointHandler": "holdfast_checkpointer.handlers.base",
    "CheckpointMetadata": "holdfast_checkpointer.metadata",
    "Checkpointer": "holdfast_checkpointer.checkpointer",
    "Context": "holdfast_checkpointer.options",
    "JsonCheckpointHandler": "holdfast_checkpointer.handlers.json",
    "PyTreeCheckpointHandler": "holdfast_checkpointer.handlers.pytree",
    "StandardCheckpointHandler": "holdfast_checkpointer.handlers.standard",
    "VerifyReport": "holdfast_checkpointer.engine.verification",
    "delete": "holdfast_checkpointer.functions",
    "copy": "holdfast_checkpointer.functions",
    "copy_async": "holdfast_checkpointer.functions",
    "is_checkpoint": "holdfast_checkpointer.functions",
    "load": "holdfast_checkpointer.functions",
    "load_async": "holdfast_checkpointer.functions",
    "metadata": "holdfast_checkpointer.functions",
    "save": "holdfast_checkpointer.functions",
    "save_async": "holdfast_checkpointer.functions",
    "verify": "holdfast_checkpointer.functions",
}
_SUBMODULES = frozenset({"args", "errors", "options", "training"})

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
    "training",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"holdfast.{name}")
    source = _SOURCES.get(name)
    if source is None:
        raise AttributeError(f"module 'holdfast' has no attribute {name!r}")
    value = getattr(importlib.import_module(source), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
