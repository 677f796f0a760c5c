"""How array bytes are stored and read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from holdfast_checkpointer.arrays.options import ArrayLoadOptions, ArraySaveOptions


@dataclass(frozen=True, kw_only=True)
class ArrayOptions:
    """How array bytes are stored and read.

    Attributes:
        saving: See `ArraySaveOptions`; also called `ArrayOptions.Saving`.
        loading: See `ArrayLoadOptions`; also called `ArrayOptions.Loading`.
    """

    Saving: ClassVar[type[ArraySaveOptions]] = ArraySaveOptions
    Loading: ClassVar[type[ArrayLoadOptions]] = ArrayLoadOptions

    saving: ArraySaveOptions = field(default_factory=ArraySaveOptions)
    loading: ArrayLoadOptions = field(default_factory=ArrayLoadOptions)
