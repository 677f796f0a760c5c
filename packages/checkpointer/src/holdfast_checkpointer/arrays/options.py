"""How array bytes are stored and read."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class ArraySaveOptions:
    """How arrays are written.

    Attributes:
        chunk_bytes: A chunk, the unit of digest and of reading, is at most this large.
        compression: None or "zstd". Trained weights are nearly random: zstd saves some 8 %
            and costs several times the time.
        small_leaf_bytes: Arrays up to this size are written as plain key/values.
        bytes_in_flight: If given, arrays are written in batches of about this many bytes,
            which bounds the memory that compression needs.
    """

    chunk_bytes: int = 16 * MIB
    compression: str | None = None
    small_leaf_bytes: int = 64 << 10
    bytes_in_flight: int | None = None

    def __post_init__(self) -> None:
        if self.compression not in (None, "zstd"):
            raise ValueError(f"compression must be None or 'zstd', got {self.compression!r}")
        for name in ("chunk_bytes", "bytes_in_flight"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        if self.small_leaf_bytes < 0:
            raise ValueError(f"small_leaf_bytes must not be negative, got {self.small_leaf_bytes}")


@dataclass(frozen=True, kw_only=True)
class ArrayLoadOptions:
    """How arrays are read.

    Attributes:
        bytes_in_flight: About how many bytes may be under way between storage and the
            arrays that are being filled; by default what the storage needs to be busy.
        verify: Compare every chunk with its digest. Without it damage goes unseen.
    """

    bytes_in_flight: int | None = None
    verify: bool = True

    def __post_init__(self) -> None:
        if self.bytes_in_flight is not None and self.bytes_in_flight < 1:
            raise ValueError(f"bytes_in_flight must be at least 1, got {self.bytes_in_flight!r}")
