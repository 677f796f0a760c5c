"""The context: all options of a call, entered for a block or given to it."""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import Any, Self, TypeVar

from holdfast_checkpointer.arrays.options import ArrayLoadOptions, ArraySaveOptions
from holdfast_checkpointer.options.array import ArrayOptions
from holdfast_checkpointer.options.checkpointables import CheckpointablesOptions
from holdfast_checkpointer.options.checks import member
from holdfast_checkpointer.options.files import AtomicityOptions, DeletionOptions, FileOptions
from holdfast_checkpointer.options.memory import MemoryOptions
from holdfast_checkpointer.options.operation import (
    AsyncOptions,
    MultiprocessingOptions,
    PathwaysOptions,
)
from holdfast_checkpointer.options.tree import PyTreeOptions
from holdfast_checkpointer.safetensors.options import CheckpointLayout, SafetensorsOptions
from holdfast_storage import StorageBackend, locate, open_backend

_GROUPS = {
    "pytree": PyTreeOptions,
    "array": ArrayOptions,
    "asynchronous": AsyncOptions,
    "multiprocessing": MultiprocessingOptions,
    "file": FileOptions,
    "checkpointables": CheckpointablesOptions,
    "pathways": PathwaysOptions,
    "deletion": DeletionOptions,
    "memory": MemoryOptions,
    "safetensors": SafetensorsOptions,
    "atomicity": AtomicityOptions,
}
_OLD_NAMES = {f"{name}_options": name for name in _GROUPS if name != "asynchronous"}
_OLD_NAMES["async_options"] = "asynchronous"


@dataclass(frozen=True, init=False)
class Context:
    """Options for the calls inside a `with` block, or for one call. Immutable.

    A context that is entered replaces the one around it whole; `Context(outer, ...)` is a copy
    of `outer` with some groups of options changed.

    Attributes:
        pytree: See `PyTreeOptions`.
        array: See `ArrayOptions`.
        asynchronous: See `AsyncOptions`.
        multiprocessing: See `MultiprocessingOptions`.
        file: See `FileOptions`.
        checkpointables: See `CheckpointablesOptions`.
        pathways: See `PathwaysOptions`.
        deletion: See `DeletionOptions`.
        memory: See `MemoryOptions`.
        safetensors: See `SafetensorsOptions`.
        atomicity: See `AtomicityOptions`.
        checkpoint_layout: A `CheckpointLayout` or its text.
        storage: Options for the storage backend (endpoint, credentials, ...). They win
            over the environment.

    Raises:
        TypeError: An option is no such group, or there is no option of that name.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> small = hf.options.ArrayOptions(saving=hf.options.ArraySaveOptions(compression="zstd"))
        >>> with hf.Context(array=small) as context:
        ...     hf.save("memory://doc/context", {"w": np.zeros(1000)})
        >>> quick = hf.Context(context, asynchronous=hf.options.AsyncOptions(timeout_secs=60))
        >>> quick.array.saving.compression
        'zstd'
    """

    pytree: PyTreeOptions
    array: ArrayOptions
    asynchronous: AsyncOptions
    multiprocessing: MultiprocessingOptions
    file: FileOptions
    checkpointables: CheckpointablesOptions
    pathways: PathwaysOptions
    deletion: DeletionOptions
    memory: MemoryOptions
    safetensors: SafetensorsOptions
    atomicity: AtomicityOptions
    checkpoint_layout: CheckpointLayout
    storage: Mapping[str, Any] | None

    def __init__(
        self,
        context: Context | None = None,
        *,
        pytree: PyTreeOptions | None = None,
        array: ArrayOptions | None = None,
        asynchronous: AsyncOptions | None = None,
        multiprocessing: MultiprocessingOptions | None = None,
        file: FileOptions | None = None,
        checkpointables: CheckpointablesOptions | None = None,
        pathways: PathwaysOptions | None = None,
        deletion: DeletionOptions | None = None,
        memory: MemoryOptions | None = None,
        safetensors: SafetensorsOptions | None = None,
        atomicity: AtomicityOptions | None = None,
        checkpoint_layout: CheckpointLayout | str | None = None,
        storage: Mapping[str, Any] | None = None,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(unknown)
        if context is not None and not isinstance(context, Context):
            raise TypeError(f"context must be a Context, got {type(context).__name__}")
        given = {
            "pytree": pytree,
            "array": array,
            "asynchronous": asynchronous,
            "multiprocessing": multiprocessing,
            "file": file,
            "checkpointables": checkpointables,
            "pathways": pathways,
            "deletion": deletion,
            "memory": memory,
            "safetensors": safetensors,
            "atomicity": atomicity,
        }
        for name, value in given.items():
            object.__setattr__(self, name, _group(name, value, context))
        if checkpoint_layout is not None:
            layout = member(CheckpointLayout, "checkpoint_layout", checkpoint_layout)
        else:
            layout = context.checkpoint_layout if context else CheckpointLayout.AUTO
        object.__setattr__(self, "checkpoint_layout", layout)
        if storage is None and context is not None:
            storage = context.storage
        object.__setattr__(self, "storage", storage)

    def __getattr__(self, name: str) -> Any:
        hint = f"; the name is {_OLD_NAMES[name]!r}" if name in _OLD_NAMES else ""
        raise AttributeError(f"Context has no {name!r}{hint}")

    def __enter__(self) -> Self:
        _entered.set((*_entered.get(), self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # By identity and from the end: one context may be entered in several threads, and
        # twice in one.
        entered = list(_entered.get())
        for index in reversed(range(len(entered))):
            if entered[index] is self:
                del entered[index]
                break
        _entered.set(tuple(entered))

    def replace(self, **changes: Any) -> Context:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    @property
    def array_saving(self) -> ArraySaveOptions:
        """`array.saving`, with what `memory` says of writing."""
        return _bounded(self.array.saving, self.memory.write_concurrent_bytes)

    @property
    def array_loading(self) -> ArrayLoadOptions:
        """`array.loading`, with what `memory` says of reading."""
        return _bounded(self.array.loading, self.memory.read_concurrent_bytes)

    def locate(self, path: str | PathLike[str]) -> tuple[StorageBackend, str]:
        """The storage that a checkpoint is on, and its key there. No request is made.

        Raises:
            ValueError: The path or an option of the storage cannot be understood.
            NotImplementedError: The storage has no directories to give a mode to.
        """
        backend, final = locate(path, self.storage)
        return self._fitted(backend), final

    def open_backend(self, directory: str | PathLike[str]) -> StorageBackend:
        """The storage whose root is a directory; see `locate`."""
        return self._fitted(open_backend(directory, self.storage))

    def _fitted(self, backend: StorageBackend) -> StorageBackend:
        if self.atomicity.allow_legacy_atomic_rename:
            backend = backend.with_unmarked_orbax()
        mode = self.file.path_permission_mode
        return backend if mode is None else backend.with_directory_mode(mode)


_entered: contextvars.ContextVar[tuple[Context, ...]] = contextvars.ContextVar(
    "holdfast_contexts", default=()
)


def current(explicit: Context | None = None) -> Context:
    """The context that a call uses: the explicit one, else the entered one, else defaults."""
    if explicit is not None:
        return explicit
    entered = _entered.get()
    return entered[-1] if entered else Context()


def _group(name: str, value: Any, context: Context | None) -> Any:
    kind = _GROUPS[name]
    if value is None:
        return kind() if context is None else getattr(context, name)
    if not isinstance(value, kind):
        found = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name} must be holdfast's options.{kind.__name__}, got {found}")
    return value


def _refuse_unknown(unknown: Mapping[str, Any]) -> None:
    for name in unknown:
        hint = f"; the name is {_OLD_NAMES[name]!r}" if name in _OLD_NAMES else ""
        raise TypeError(f"Context has no option {name!r}{hint}")


Bounded = TypeVar("Bounded", ArraySaveOptions, ArrayLoadOptions)


def _bounded(options: Bounded, limit: int | None) -> Bounded:
    """The smaller bound, if there are two."""
    if limit is None:
        return options
    own = options.bytes_in_flight
    return dataclasses.replace(options, bytes_in_flight=limit if own is None else min(own, limit))
