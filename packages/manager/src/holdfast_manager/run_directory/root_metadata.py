"""What the user says of a run as a whole, stored once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from holdfast_metadata.orbax import ROOT_METADATA_FILE, RootMetadata
from holdfast_storage import IfAbsent, ObjectExistsError, ObjectNotFoundError, StorageBackend, keys

_log = logging.getLogger(__name__)
_KEY = f"metadata/{ROOT_METADATA_FILE}"


async def write_root_metadata(backend: StorageBackend, custom: Mapping[str, Any]) -> None:
    """Stores the run's own metadata once; what is there already stays."""
    data = RootMetadata(custom_metadata=dict(custom)).to_bytes()
    try:
        await backend.put(_KEY, data, condition=IfAbsent())
    except ObjectExistsError:
        _log.debug("%s has root metadata already", backend.root)


async def read_root_metadata(backend: StorageBackend) -> Mapping[str, Any]:
    """The run's own metadata; empty if none was stored."""
    try:
        data = await backend.get(_KEY)
    except ObjectNotFoundError:
        return {}
    source = keys.join(backend.root, _KEY)
    return RootMetadata.from_bytes(data, source=source).custom_metadata or {}
