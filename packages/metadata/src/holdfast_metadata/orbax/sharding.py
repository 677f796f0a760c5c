"""`_sharding`: the sharding of each jax.Array, as JSON text inside JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.fields import Fields
from holdfast_metadata.json_codec import canonical_json, parse_json

SHARDING_FILE = "_sharding"


@dataclass(frozen=True, slots=True)
class ShardingFile:
    """The shardings of an item.

    Attributes:
        shardings: By parameter name, the JSON object that describes a sharding.
        unreadable: Keys of the file whose entries cannot be read. Orbax does not look at
            them until it needs one; without them, a leaf just has no saved sharding.

    Examples:
        >>> ShardingFile({"b": {"sharding_type": "SingleDeviceSharding"}}).to_bytes()
        b'{"Yg==":"{\\\\"sharding_type\\\\": \\\\"SingleDeviceSharding\\\\"}"}'
    """

    shardings: Mapping[str, Mapping[str, Any]]
    unreadable: tuple[str, ...] = ()

    def to_bytes(self) -> bytes:
        """Encodes: padded URL-safe base64 of the name, and the object as text.

        Raises:
            MetadataError: A name is not Unicode.
        """
        try:
            return canonical_json(
                {
                    base64.urlsafe_b64encode(name.encode()).decode("ascii"): json.dumps(sharding)
                    for name, sharding in self.shardings.items()
                }
            )
        except UnicodeEncodeError as error:
            raise MetadataError(f"the name {error.object!r:.60} is not Unicode") from error

    @classmethod
    def from_bytes(cls, data: bytes, *, source: str = SHARDING_FILE) -> ShardingFile:
        """Decodes what can be decoded, see `unreadable`.

        Raises:
            MetadataError: The file is no JSON object.
        """
        stored = Fields.parse(data, source=source, lenient=True).rest
        found: dict[str, Mapping[str, Any]] = {}
        unreadable = []
        for key, text in stored.items():
            try:
                name = base64.b64decode(key, altchars=b"-_", validate=True).decode()
                found[name] = Fields(parse_json(text.encode()), source=key).rest
            except (ValueError, AttributeError):
                unreadable.append(key)
        return cls(found, tuple(unreadable))
