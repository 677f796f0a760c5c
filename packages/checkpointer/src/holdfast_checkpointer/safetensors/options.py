"""Which layout a path is read as, and how safetensors files are read."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class CheckpointLayout(enum.Enum):
    """What a path holds.

    Attributes:
        AUTO: A checkpoint of holdfast's or Orbax's; where none is, safetensors files.
        ORBAX: A checkpoint of holdfast's or Orbax's, nothing else.
        SAFETENSORS: Safetensors files, nothing else.
    """

    AUTO = "auto"
    ORBAX = "orbax"
    SAFETENSORS = "safetensors"


@dataclass(frozen=True, kw_only=True)
class SafetensorsOptions:
    """How safetensors files are read, and how their tensors are named.

    Attributes:
        nested: Without a target, split each name at the separator into nested dicts.
        separator: Joins the keys on the way to a leaf into the name of its tensor.
        max_over_read_ratio: How many times the bytes that are wanted may be read to save
            requests; 1.0 reads no others. None lets the storage decide: gaps are read that cost
            less than a request.
        read_chunk_bytes: Bytes per request; None for 16 MiB.
    """

    nested: bool = False
    separator: str = "."
    max_over_read_ratio: float | None = None
    read_chunk_bytes: int | None = None

    def __post_init__(self) -> None:
        if not self.separator:
            raise ValueError("separator must not be empty: names could not be told apart")
        ratio = self.max_over_read_ratio
        if ratio is not None and not ratio >= 1:
            raise ValueError(f"max_over_read_ratio must be at least 1, got {ratio!r}")
        if self.read_chunk_bytes is not None and self.read_chunk_bytes < 1:
            raise ValueError(f"read_chunk_bytes must be at least 1, got {self.read_chunk_bytes!r}")


def refuse_tensors(layout: CheckpointLayout, call: str) -> None:
    """Stops a call that has no meaning for safetensors files, before it does anything.

    Raises:
        NotImplementedError: They are what the context asks for; says what to call.
    """
    if layout is CheckpointLayout.SAFETENSORS:
        raise NotImplementedError(
            f"{call} knows no checkpoint_layout 'safetensors', which is one tree of tensors: "
            "export_safetensors writes it, load reads it"
        )
