"""`_pins/<name>`: a step that no retention removes. `_collecting/<id>`: what one is about to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.attempt import AttemptMark
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

PINS_DIR = "_pins"
COLLECTING_DIR = "_collecting"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Pin:
    """One pin.

    Attributes:
        step: The step that stays.
        name: Why, in the caller's word; the name of the file.
        created_ns: Nanoseconds since the epoch by the writer's clock.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    step: int
    name: str
    created_ns: int
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "step": self.step,
            "name": self.name,
            "created_ns": self.created_ns,
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = PINS_DIR) -> Pin:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            step=fields.take("step", int),
            name=fields.take("name", str),
            created_ns=fields.take("created_ns", int),
            extra=fields.rest,
        )


@dataclass(frozen=True, slots=True)
class Collecting:
    """What a retention is about to un-commit; there only while it does.

    Attributes:
        names: The folders of the steps.
        by: Who removes them, and a unique id of the removal.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    names: tuple[str, ...]
    by: AttemptMark
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "names": list(self.names),
            "by": self.by.to_json(),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = COLLECTING_DIR) -> Collecting:
        """Decodes strictly; raises as `Pin.from_bytes`."""
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            names=fields.take_list("names", str),
            by=AttemptMark.from_json(fields.take("by", dict), source=source),
            extra=fields.rest,
        )
