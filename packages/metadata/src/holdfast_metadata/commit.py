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
class Trashed:
    """An attempt that was committed, is in the trash, and may come back.

    Attributes:
        attempt: Its id.
        data: Where its files are, relative to the final; "" for the final.
        manifest_digest: Digest of the manifest's bytes.
        committed_ns: When it was committed, as in the record.
    """

    attempt: str
    data: str = ""
    manifest_digest: str | None = None
    committed_ns: int | None = None

    def to_json(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "attempt": self.attempt,
            "data": self.data,
            "manifest_digest": self.manifest_digest,
            "committed_ns": self.committed_ns,
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str) -> Trashed:
        """The inverse of `to_json`.

        Raises:
            MetadataError: It is no such object.
        """
        fields = Fields(value, source=f"{source}: an element of 'trashed'")
        return cls(
            attempt=fields.take("attempt", str),
            data=fields.take("data", str),
            manifest_digest=fields.take("manifest_digest", str, None),
            committed_ns=fields.take("committed_ns", int, None),
        )


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
        trashed: Attempts in the trash whose data is here still: no sweep takes it.
        orbax_until_ns: A checkpoint of Orbax's in the final itself is being removed: its files
            are those whose time, by the store, is not later than this.
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
    trashed: tuple[Trashed, ...] = ()
    orbax_until_ns: int | None = None
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def committed(self) -> bool:
        """Whether this record makes a checkpoint visible."""
        return self.state == "committed"

    def in_trash(self, attempt: str) -> Trashed | None:
        """What the trash holds of an attempt, or None."""
        return next((found for found in self.trashed if found.attempt == attempt), None)

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
        if self.trashed:
            known["trashed"] = [found.to_json() for found in self.trashed]
        if self.orbax_until_ns is not None:
            known["orbax_until_ns"] = self.orbax_until_ns
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
            trashed=tuple(
                Trashed.from_json(found, source=source)
                for found in fields.take_list("trashed", dict, default=[])
            ),
            orbax_until_ns=fields.take("orbax_until_ns", int, None, default=None),
            extra=fields.rest,
        )
        if record.committed and not record.attempt:
            raise MetadataError(f"{source} is committed and names no attempt")
        for path in (record.data, *(found.data for found in record.trashed)):
            if path and not is_relative_path(path):
                raise MetadataError(f"{source}: 'data' is {path!r}, which is no relative path")
        return record
