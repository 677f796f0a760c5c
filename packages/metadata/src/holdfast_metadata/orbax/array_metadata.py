"""`array_metadatas/process_N`: shapes of what a process wrote, and PRNG implementations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast_metadata.fields import Fields
from holdfast_metadata.json_codec import canonical_json

ARRAY_METADATA_DIR = "array_metadatas"


@dataclass(frozen=True, slots=True)
class ArrayMetadataEntry:
    """One jax.Array.

    Attributes:
        name: Parameter name.
        write_shape: Of what one device wrote.
        chunk_shape: Of a stored chunk.
        key_impl: The implementation if the array holds typed PRNG keys: the only place
            where Orbax says so.
    """

    name: str
    write_shape: tuple[int, ...]
    chunk_shape: tuple[int, ...]
    key_impl: str | None = None


@dataclass(frozen=True, slots=True)
class ArrayMetadataFile:
    """All jax.Arrays of one process; Orbax reads the file of process 0 alone."""

    entries: tuple[ArrayMetadataEntry, ...]

    def to_bytes(self) -> bytes:
        """Encodes as JSON."""
        return canonical_json(
            {
                "array_metadatas": [
                    {
                        "array_metadata": {
                            "param_name": entry.name,
                            "write_shape": entry.write_shape,
                            "chunk_shape": entry.chunk_shape,
                            "ext_metadata": None
                            if entry.key_impl is None
                            else {"random_key_impl": entry.key_impl},
                        }
                    }
                    for entry in self.entries
                ]
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = ARRAY_METADATA_DIR) -> ArrayMetadataFile:
        """Decodes.

        Raises:
            MetadataError: A field is missing or has the wrong type.
        """
        fields = Fields.parse(data, source=source, lenient=True)
        entries = fields.take("array_metadatas", list, default=[])
        return cls(tuple(_entry(stored, source) for stored in entries))


def _entry(stored: Any, source: str) -> ArrayMetadataEntry:
    fields = Fields(Fields(stored, source=source).take("array_metadata", dict), source=source)
    extension = fields.take("ext_metadata", dict, None, default=None) or {}
    return ArrayMetadataEntry(
        name=fields.take("param_name", str),
        write_shape=fields.take_list("write_shape", int),
        chunk_shape=fields.take_list("chunk_shape", int),
        key_impl=Fields(extension, source=source).take("random_key_impl", str, None, default=None),
    )
