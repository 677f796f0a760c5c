"""`_quarantine/<folder of a step>`: that an attempt was found damaged, and how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.attempt import AttemptMark
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

QUARANTINE_DIR = "_quarantine"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class QuarantineMark:
    """What was found, in which attempt, when and by whom.

    Attributes:
        attempt: The attempt that is damaged, of any other the mark says nothing; None if the
            commit record cannot be read.
        files: Digest of the names, sizes and versions of its files, as the store told them: once
            they are changed, the mark says nothing, unless its problem is "incomplete".
        problem: "incomplete" if files were missing or short, which holds for as long as they
            are; "unreadable" of the commit record; "damaged" for anything else.
        error: The class of the error that reading raised.
        reason: Its message.
        file: The damaged file, relative to the checkpoint; empty if unknown.
        leaf: The leaf it belongs to; empty if unknown.
        by: Who found it, and when (`created_ns`).
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    attempt: str | None
    files: str
    problem: str
    error: str
    reason: str
    file: str
    leaf: str
    by: AttemptMark
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "attempt": self.attempt,
            "files": self.files,
            "problem": self.problem,
            "error": self.error,
            "reason": self.reason,
            "file": self.file,
            "leaf": self.leaf,
            "by": self.by.to_json(),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = QUARANTINE_DIR) -> QuarantineMark:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            attempt=fields.take("attempt", str, None),
            files=fields.take("files", str),
            problem=fields.take("problem", str),
            error=fields.take("error", str),
            reason=fields.take("reason", str),
            file=fields.take("file", str),
            leaf=fields.take("leaf", str),
            by=AttemptMark.from_json(fields.take("by", dict), source=source),
            extra=fields.rest,
        )
