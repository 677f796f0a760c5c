"""`_ATTEMPT.json`: the mark by which holdfast knows its own unfinished work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

ATTEMPT_FILE = "_ATTEMPT.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class AttemptMark:
    """Who is writing an attempt.

    Attributes:
        attempt: Its id.
        kind: What is being saved.
        host: Host name, for people.
        boot_id: Identifies one boot of one host; "" if unknown.
        pid_namespace: Identifies the namespace that `pid` belongs to; "" if unknown.
        pid: Of the writer.
        process_start: Start time of that process, so that a reused pid is told apart.
        ttl_s: Silence after which the attempt counts as dead, in seconds.
        created_ns: Nanoseconds since the epoch by the writer's clock.
        beat: Counts the refreshes.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    attempt: str
    kind: str
    host: str
    boot_id: str
    pid_namespace: str
    pid: int
    process_start: str
    ttl_s: float
    created_ns: int
    beat: int = 0
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As a part of another document."""
        known = {
            "format_version": self.format_version,
            "attempt": self.attempt,
            "kind": self.kind,
            "host": self.host,
            "boot_id": self.boot_id,
            "pid_namespace": self.pid_namespace,
            "pid": self.pid,
            "process_start": self.process_start,
            "ttl_s": self.ttl_s,
            "created_ns": self.created_ns,
            "beat": self.beat,
        }
        return merge_extra(known, self.extra)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        return canonical_json(self.to_json())

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, source: str) -> AttemptMark:
        """The inverse of `to_json`; raises as `from_bytes`."""
        return cls.from_bytes(canonical_json(dict(value)), source=source)

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = ATTEMPT_FILE) -> AttemptMark:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            attempt=fields.take("attempt", str),
            kind=fields.take("kind", str),
            host=fields.take("host", str),
            boot_id=fields.take("boot_id", str),
            pid_namespace=fields.take("pid_namespace", str),
            pid=fields.take("pid", int),
            process_start=fields.take("process_start", str),
            ttl_s=fields.take("ttl_s", float, int),
            created_ns=fields.take("created_ns", int),
            beat=fields.take("beat", int),
            extra=fields.rest,
        )
