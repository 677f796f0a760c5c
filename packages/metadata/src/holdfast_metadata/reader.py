"""`_readers/<id>`: steps that a process reads at this moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.attempt import AttemptMark
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

READERS_DIR = "_readers"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class ReaderLease:
    """What one reader reads; there only while it does.

    Attributes:
        steps: The steps.
        by: Who reads them: the unique id, how long the lease holds after each beat, and the
            count of beats.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    steps: tuple[int, ...]
    by: AttemptMark
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "steps": list(self.steps),
            "by": self.by.to_json(),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = READERS_DIR) -> ReaderLease:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            steps=fields.take_list("steps", int),
            by=AttemptMark.from_json(fields.take("by", dict), source=source),
            extra=fields.rest,
        )
