"""The one digest of files and array chunks: xxh3, 64 bits.

It finds damage, not malice. Measured at 30 GB/s, it costs less than a copy.
"""

from __future__ import annotations

from typing import Any

import xxhash

PREFIX = "xxh3_64:"


def digest_bytes(buffer: Any) -> str:
    """Digests any contiguous buffer without copying it.

    Example:
        >>> digest_bytes(b"holdfast")[:8]
        'xxh3_64:'
    """
    return PREFIX + xxhash.xxh3_64_hexdigest(buffer)
