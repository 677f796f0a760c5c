"""`metadata/_ROOT_METADATA`: what is stored once for a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json, require_json

ROOT_METADATA_FILE = "_ROOT_METADATA"


@dataclass(frozen=True, slots=True)
class RootMetadata:
    """A run's document.

    Attributes:
        custom_metadata: The caller's object.
        internal_metadata: Orbax's own, kept.
    """

    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    internal_metadata: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as JSON."""
        require_json(self.custom_metadata, what="custom_metadata")
        known = {
            "custom_metadata": dict(self.custom_metadata),
            "internal_metadata": dict(self.internal_metadata),
        }
        return canonical_json(merge_extra(known, self.extra))

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = ROOT_METADATA_FILE) -> RootMetadata:
        """Decodes; both fields are optional, as for Orbax.

        Raises:
            MetadataError: A field has the wrong type.
        """
        fields = Fields.parse(data, source=source)
        return cls(
            custom_metadata=fields.take("custom_metadata", dict, None, default=None) or {},
            internal_metadata=fields.take("internal_metadata", dict, None, default=None) or {},
            extra=fields.rest,
        )
