"""`metadata/_ROOT_METADATA`: what is stored once for a whole run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields, merge_extra
from holdfast_metadata.json_codec import canonical_json
from holdfast_metadata.orbax.values import require_object

ROOT_METADATA_FILE = "_ROOT_METADATA"
LEGACY_ROOT_METADATA_FILE = "metadata"  # what Orbax tries if the other is missing


@dataclass(frozen=True, slots=True)
class RootMetadata:
    """A run's document.

    Attributes:
        custom_metadata: The caller's object.
        internal_metadata: Orbax's own, kept.
        extra: Fields that Orbax would fold into the custom metadata; it refuses both together.
    """

    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    internal_metadata: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as JSON.

        Raises:
            MetadataError: The custom metadata is not plain JSON, or there are unknown
                fields beside it.
        """
        require_object(self.custom_metadata, what="custom_metadata")
        if self.extra and self.custom_metadata:
            raise MetadataError("Orbax refuses unknown fields beside custom_metadata")
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
        fields = Fields.parse(data, source=source, lenient=True)
        return cls(
            custom_metadata=fields.take("custom_metadata", dict, None, default=None) or {},
            internal_metadata=fields.take("internal_metadata", dict, None, default=None) or {},
            extra=fields.rest,
        )
