"""`_lease/<epoch>`: who writes to a run. The highest epoch is the holder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.attempt import AttemptMark
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json

LEASE_DIR = "_lease"
LEASE_FIELD = "lease"  # in a mark: the epoch under which it was made
FORMAT_VERSION = 1
_NAME = re.compile(r"[0-9]{8,18}")


@dataclass(frozen=True, slots=True)
class Lease:
    """One epoch of a run's writers.

    Attributes:
        epoch: Its number, from 1; the name of the file.
        by: Who holds it. Its `attempt` is a unique id, and its `beat` counts the refreshes.
        released: Whether the holder has ended, and decides nothing any more.
        format_version: Of this document.
        extra: Fields this version does not know, kept.
    """

    epoch: int
    by: AttemptMark
    released: bool = False
    format_version: int = FORMAT_VERSION
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as canonical JSON."""
        known = {
            "format_version": self.format_version,
            "epoch": self.epoch,
            "released": self.released,
            "by": self.by.to_json(),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = LEASE_DIR) -> Lease:
        """Decodes strictly.

        Raises:
            NewerFormatError: Written by a newer holdfast.
            MetadataError: Not such a document.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            format_version=fields.version(FORMAT_VERSION),
            epoch=fields.take("epoch", int),
            released=fields.take("released", bool),
            by=AttemptMark.from_json(fields.take("by", dict), source=source),
            extra=fields.rest,
        )


def lease_name(epoch: int) -> str:
    """The file of an epoch."""
    return f"{epoch:08d}"


def lease_epoch(name: str) -> int | None:
    """The epoch of a file, or None if it is none of ours."""
    if not _NAME.fullmatch(name) or lease_name(int(name)) != name:
        return None
    return int(name) or None


def epoch_of(mark: AttemptMark) -> int | None:
    """The epoch under which a mark was made; None if without a lease."""
    said = mark.extra.get(LEASE_FIELD)
    return said if type(said) is int else None
