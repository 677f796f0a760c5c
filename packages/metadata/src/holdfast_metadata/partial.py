"""Documents of a checkpoint that is saved in parts: the entries of its log, and `_PARTIAL.json`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

PARTIAL_FILE = "_PARTIAL.json"
FORMAT_VERSION = 1
KINDS = ("part", "closed", "ended")


@dataclass(frozen=True, slots=True)
class PartialEntry:
    """One entry of the log of a checkpoint that is saved in parts.

    Attributes:
        kind: `part` (one more is saved), `closed` (no more will be; they are being merged) or
            `ended` (they are merged, or were given up). A checkpoint that was merged holds
            its `closed` entry as `_PARTIAL.json`.
        parts: The part's id; for `closed` and `ended` those of all, in order. Such an entry
            says nothing about a log with other parts.
        session: For `closed` and `ended`: which run of parts it ends; "" if given up.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    kind: str
    parts: tuple[str, ...] = ()
    session: str = ""
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "kind": self.kind,
            "parts": list(self.parts),
            "session": self.session,
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = PARTIAL_FILE) -> PartialEntry:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            kind=fields.choice("kind", KINDS),
            parts=fields.take_list("parts", str),
            session=fields.take("session", str),
            extra=fields.rest,
        )
