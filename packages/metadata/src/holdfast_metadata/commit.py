"""`_COMMIT.json`: the one object that decides whether a checkpoint exists."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, is_relative_path, merge_extra
from holdfast_metadata.json_codec import canonical_json

COMMIT_FILE = "_COMMIT.json"
FORMAT_VERSION = 1
STATES = ("committed", "retired", "trashed", "none")


@dataclass(frozen=True, slots=True)
class CommitRecord:
    """The state of one final: it decides, alone, whether there is a checkpoint.

    Attributes:
        state: `committed`; `retired` or `trashed` (was, and is no more); `none` (never
            was: the record exists to fence attempts).
        attempt: The attempt it speaks of.
        data: Where that attempt's files are, relative to the final; "" for the final.
        manifest_digest: Digest of the manifest's bytes.
        committed_ns: Nanoseconds since the epoch by the writer's clock.
        dead: Attempts that can never be committed here.
        kind: What was saved.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    state: str
    attempt: str | None = None
    data: str = ""
    manifest_digest: str | None = None
    committed_ns: int | None = None
    dead: tuple[str, ...] = ()
    kind: str = "checkpoint"
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        """Whether this record makes a checkpoint visible."""
        return self.state == "committed"

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "state": self.state,
            "attempt": self.attempt,
            "data": self.data,
            "manifest_digest": self.manifest_digest,
            "committed_ns": self.committed_ns,
            "dead": list(self.dead),
            "kind": self.kind,
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = COMMIT_FILE) -> CommitRecord:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document, or it is committed and names no attempt, or
                its data would lie outside of the final.
        """
        fields = Fields.parse(data, source=source)
        record = cls(
            format_version=fields.version(FORMAT_VERSION),
            state=fields.choice("state", STATES),
            attempt=fields.take("attempt", str, None),
            data=fields.take("data", str),
            manifest_digest=fields.take("manifest_digest", str, None),
            committed_ns=fields.take("committed_ns", int, None),
            dead=fields.take_list("dead", str),
            kind=fields.take("kind", str, default="checkpoint"),
            extra=fields.rest,
        )
        if record.committed and not record.attempt:
            raise MetadataError(f"{source} is committed and names no attempt")
        if record.data and not is_relative_path(record.data):
            raise MetadataError(f"{source}: 'data' is {record.data!r}, which is no relative path")
        return record
