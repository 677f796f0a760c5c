"""The one digest of files and array chunks: xxh3, 64 bits.

It finds damage, not malice. Measured at 30 GB/s, it costs less than a copy.
"""

from __future__ import annotations

from typing import Any

import xxhash

from holdfast_metadata.errors import MetadataError

PREFIX = "xxh3_64:"


def digest_bytes(buffer: Any) -> str:
    """Digests the bytes of any C-contiguous buffer, without copying it.

    Arrays of NumPy are buffers, those with a dtype of ml_dtypes too.

    Raises:
        MetadataError: It is no buffer, or not contiguous.

    Examples:
        >>> digest_bytes(b"holdfast")
        'xxh3_64:4ddf46ebd3ad850b'
    """
    try:
        return PREFIX + xxhash.xxh3_64_hexdigest(buffer)
    except (TypeError, ValueError, BufferError) as error:
        kind = type(buffer).__name__
        raise MetadataError(f"a {kind} has no digest, a contiguous buffer has: {error}") from error


def matches_digest(buffer: Any, expected: str) -> bool:
    """Whether a buffer has the digest that was recorded.

    Raises:
        MetadataError: `expected` is no digest that this holdfast can compute.

    Examples:
        >>> matches_digest(b"holdfast", digest_bytes(b"holdfast"))
        True
    """
    if not expected.startswith(PREFIX) or len(expected) != len(PREFIX) + 16:
        raise MetadataError(f"{expected!r:.60} is no digest; known are {PREFIX}<16 hex digits>")
    return digest_bytes(buffer) == expected


class Digester:
    """Digests what comes in pieces.

    Examples:
        >>> digester = Digester()
        >>> digester.update(b"hold")
        >>> digester.update(b"fast")
        >>> digester.digest() == digest_bytes(b"holdfast")
        True
    """

    def __init__(self) -> None:
        self._state = xxhash.xxh3_64()

    def update(self, piece: bytes) -> None:
        """Adds the next piece."""
        self._state.update(piece)

    def digest(self) -> str:
        """The digest of all pieces so far."""
        return PREFIX + self._state.hexdigest()
