"""What a caller may put into Orbax's documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from holdfast_metadata.errors import MetadataError
from holdfast_metadata.json_codec import require_json


def require_object(value: Any, *, what: str) -> None:
    """Refuses all but JSON objects: with anything else Orbax cannot open the checkpoint.

    Raises:
        MetadataError: Names the place inside `what`, and what was found.
    """
    if not isinstance(value, Mapping):
        kind = type(value).__name__
        raise MetadataError(f"{what} must be a mapping with text keys, found {kind} {value!r:.60}")
    require_json(value, what=what)
