"""`_sharding`: the sharding of each jax.Array, as JSON text inside JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.json_codec import canonical_json, parse_json

SHARDING_FILE = "_sharding"


@dataclass(frozen=True, slots=True)
class ShardingFile:
    """The sharding as a JSON object, by parameter name."""

    shardings: Mapping[str, Mapping[str, Any]]

    def to_bytes(self) -> bytes:
        """Encodes: padded URL-safe base64 of the name, and the object as text."""
        return canonical_json(
            {
                base64.urlsafe_b64encode(name.encode()).decode("ascii"): json.dumps(sharding)
                for name, sharding in self.shardings.items()
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = SHARDING_FILE) -> ShardingFile:
        """Decodes.

        Raises:
            MetadataError: A key is no base64, or a value no JSON text.
        """
        stored = parse_json(data, source=source)
        if not isinstance(stored, dict):
            raise MetadataError(f"{source} must be a JSON object")
        found = {}
        for key, text in stored.items():
            try:
                name = base64.b64decode(key, altchars=b"-_", validate=True).decode()
                found[name] = json.loads(text)
            except (ValueError, TypeError) as error:
                raise MetadataError(f"{source}: the entry {key!r} cannot be read") from error
        return cls(found)
