"""`_DIGESTS/process_N`: a digest for every array chunk that a process wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

DIGESTS_DIR = "_DIGESTS"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ArrayDigests:
    """The chunks of one stored array.

    Attributes:
        dtype: Name of the dtype as stored.
        shape: Of the whole array.
        chunk_shape: Of a chunk; those at the end may be smaller.
        digests: By chunk index, written as in "0.3" ("" for a rank-0 array): the digest of
            the chunk's in-bounds elements in C order, little endian.
    """

    dtype: str
    shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    digests: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ChunkDigests:
    """All arrays of which a process wrote chunks.

    Attributes:
        arrays: By parameter name.
        format_version: Of this document.
        extra: Fields this version does not know, kept.

    Examples:
        >>> ChunkDigests({"w": ArrayDigests("int8", (3,), (2,), {"0": "a", "1": "b"})}).to_bytes()
        b'{"arrays":{"w":["int8",[3],[2],{"0":"a","1":"b"}]},"format_version":1}'
    """

    arrays: Mapping[str, ArrayDigests]
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON; an array is a list, for there may be thousands."""
        arrays = {
            name: [array.dtype, array.shape, array.chunk_shape, dict(array.digests)]
            for name, array in self.arrays.items()
        }
        known = {"format_version": self.format_version, "arrays": arrays}
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = DIGESTS_DIR) -> ChunkDigests:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document; the message names the array.
        """
        fields = Fields.parse(data, source=source)
        version = fields.version(FORMAT_VERSION)
        found = {}
        for name, stored in fields.take("arrays", dict).items():
            array = _array(stored)
            if array is None:
                raise MetadataError(
                    f"{source}: the array {name!r} must be [dtype, shape, chunk shape, digests], "
                    f"found {stored!r:.60}"
                )
            found[name] = array
        return cls(arrays=found, format_version=version, extra=fields.rest)


def _array(stored: Any) -> ArrayDigests | None:
    match stored:
        case [str(dtype), [*shape], [*chunk_shape], dict(digests)] if (
            len(shape) == len(chunk_shape)
            and all(type(size) is int and size >= 0 for size in (*shape, *chunk_shape))
            and all(type(digest) is str for digest in digests.values())
        ):
            return ArrayDigests(dtype, tuple(shape), tuple(chunk_shape), digests)
    return None
