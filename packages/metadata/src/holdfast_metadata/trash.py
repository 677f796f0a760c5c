"""`<trash>/.<name>.trashed`: names a checkpoint that is in the trash, wherever its data lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.attempt import AttemptMark
from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, is_relative_path, merge_extra
from holdfast_metadata.json_codec import canonical_json

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class TrashTicket:
    """One checkpoint in the trash. Its age is that of this object, by the store's clock.

    Attributes:
        final: The prefix that it was known by, relative to the run.
        attempt: Its attempt; null for a checkpoint of Orbax's.
        by: Who put it there.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    final: str
    attempt: str | None
    by: AttemptMark
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "final": self.final,
            "attempt": self.attempt,
            "by": self.by.to_json(),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = "a ticket") -> TrashTicket:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        ticket = cls(
            format_version=fields.version(FORMAT_VERSION),
            final=fields.take("final", str),
            attempt=fields.take("attempt", str, None),
            by=AttemptMark.from_json(fields.take("by", dict), source=source),
            extra=fields.rest,
        )
        if not is_relative_path(ticket.final):
            raise MetadataError(f"{source}: 'final' is {ticket.final!r}, which is no relative path")
        return ticket
