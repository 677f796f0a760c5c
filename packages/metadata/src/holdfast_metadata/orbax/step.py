"""`_CHECKPOINT_METADATA`: what Orbax knows of a whole checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields
from holdfast_metadata.json_codec import canonical_json
from holdfast_metadata.orbax.values import require_object

STEP_METADATA_FILE = "_CHECKPOINT_METADATA"


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """A checkpoint's document.

    Attributes:
        item_handlers: Class path by item name; one class path for a flat checkpoint. What
            is no class path was not read.
        init_timestamp_nsecs: Start of the save, or None.
        commit_timestamp_nsecs: End of the save, or None.
        custom_metadata: The caller's object.
        metrics: Always empty in practice: metrics are an item.
        performance_metrics: Orbax's own; an unknown key makes its readers fail, so holdfast
            writes none.
        extra: Fields that Orbax would fold into the custom metadata; never written when
            there is custom metadata, since Orbax then refuses the file.
    """

    item_handlers: Mapping[str, str] | str | None = None
    init_timestamp_nsecs: int | None = None
    commit_timestamp_nsecs: int | None = None
    custom_metadata: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    performance_metrics: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Encodes as JSON that every Orbax reader accepts.

        Raises:
            MetadataError: The custom metadata is not plain JSON, there are unknown fields
                beside it, or a timestamp is no int.
        """
        require_object(self.custom_metadata, what="custom_metadata")
        if self.extra and self.custom_metadata:
            raise MetadataError("Orbax refuses unknown fields beside custom_metadata")
        for name in ("init_timestamp_nsecs", "commit_timestamp_nsecs"):
            found = getattr(self, name)
            if found is not None and type(found) is not int:
                raise MetadataError(f"{name} must be int or None, found {found!r:.60}")
        return canonical_json(
            {
                **self.extra,
                "item_handlers": self.item_handlers,
                "metrics": dict(self.metrics),
                "performance_metrics": dict(self.performance_metrics),
                "init_timestamp_nsecs": self.init_timestamp_nsecs,
                "commit_timestamp_nsecs": self.commit_timestamp_nsecs,
                "custom_metadata": dict(self.custom_metadata),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = STEP_METADATA_FILE) -> StepMetadata:
        """Decodes; an empty file is an empty document, as for Orbax.

        Raises:
            MetadataError: A field has the wrong type.
        """
        if not data.strip():
            return cls()
        fields = Fields.parse(data, source=source, lenient=True)
        handlers = fields.take("item_handlers", dict, str, None, default=None)
        if isinstance(handlers, dict):
            handlers = {name: path for name, path in handlers.items() if isinstance(path, str)}
        return cls(
            item_handlers=handlers,
            init_timestamp_nsecs=fields.take("init_timestamp_nsecs", int, None, default=None),
            commit_timestamp_nsecs=fields.take("commit_timestamp_nsecs", int, None, default=None),
            custom_metadata=fields.take("custom_metadata", dict, None, default=None) or {},
            metrics=fields.take("metrics", dict, None, default=None) or {},
            performance_metrics=fields.take("performance_metrics", dict, None, default=None) or {},
            extra=fields.rest,
        )
