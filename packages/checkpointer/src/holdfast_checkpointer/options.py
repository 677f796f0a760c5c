"""How to save and load: immutable options, and the context that carries them.

An explicit `context=` argument beats `with Context(...)`, which beats the defaults. A
context entered in one thread is not seen by another, so a running save never changes.
"""

from __future__ import annotations

import contextvars
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from holdfast_checkpointer.arrays.options import ArrayLoadOptions, ArraySaveOptions
from holdfast_checkpointer.safetensors.options import CheckpointLayout, SafetensorsOptions


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How array bytes are stored and read."""

    saving: ArraySaveOptions = field(default_factory=ArraySaveOptions)
    loading: ArrayLoadOptions = field(default_factory=ArrayLoadOptions)


@dataclass(frozen=True, kw_only=True)
class AsyncOptions:
    """How long background work may take.

    Attributes:
        timeout_secs: Deadline of one whole save or load, in seconds. Every storage
            request has a shorter one of its own.
    """

    timeout_secs: float = 7200.0

    def __post_init__(self) -> None:
        if not self.timeout_secs > 0:
            raise ValueError(f"timeout_secs must be positive, got {self.timeout_secs!r}")


@dataclass(frozen=True, kw_only=True)
class Context:
    """Options for the calls inside a `with` block, or for one call.

    Attributes:
        array: See `ArrayOptions`.
        asynchronous: See `AsyncOptions`.
        checkpoint_layout: What paths are read as, also by its name ("safetensors"); see
            `CheckpointLayout`.
        safetensors: See `SafetensorsOptions`.
        storage: Options for the storage backend (endpoint, credentials, ...). They win
            over the environment.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> small = hf.options.ArrayOptions(saving=hf.options.ArraySaveOptions(compression="zstd"))
        >>> with hf.Context(array=small):
        ...     hf.save("memory://doc/context", {"w": np.zeros(1000)})
    """

    array: ArrayOptions = field(default_factory=ArrayOptions)
    asynchronous: AsyncOptions = field(default_factory=AsyncOptions)
    checkpoint_layout: CheckpointLayout = CheckpointLayout.AUTO
    safetensors: SafetensorsOptions = field(default_factory=SafetensorsOptions)
    storage: Mapping[str, Any] | None = None
    _tokens: list[contextvars.Token[Context]] = field(
        default_factory=list, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        # Frozen for callers; a name is as good as the member, as in Orbax.
        object.__setattr__(self, "checkpoint_layout", CheckpointLayout(self.checkpoint_layout))

    def __enter__(self) -> Self:
        self._tokens.append(_active.set(self))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _active.reset(self._tokens.pop())

    def replace(self, **changes: Any) -> Context:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_active: contextvars.ContextVar[Context] = contextvars.ContextVar("holdfast_context")


def current(explicit: Context | None = None) -> Context:
    """The context that a call uses: the explicit one, else the entered one, else defaults."""
    if explicit is not None:
        return explicit
    return _active.get(None) or Context()
