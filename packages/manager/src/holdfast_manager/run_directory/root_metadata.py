"""What the user says of a run as a whole, stored once."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from holdfast_metadata.orbax import LEGACY_ROOT_METADATA_FILE, ROOT_METADATA_FILE, RootMetadata
from holdfast_storage import IfAbsent, ObjectExistsError, ObjectNotFoundError, StorageBackend, keys
from holdfast_storage.commit import shelter

_log = logging.getLogger(__name__)
_KEY = f"metadata/{ROOT_METADATA_FILE}"
_OLD_KEY = f"metadata/{LEGACY_ROOT_METADATA_FILE}"


async def write_root_metadata(backend: StorageBackend, custom: Mapping[str, Any]) -> None:
    """Stores the run's own metadata once; what is there already stays, also an old Orbax's."""
    data = RootMetadata(custom_metadata=dict(custom)).to_bytes()
    if await _stored(backend) is None:
        try:
            await shelter(backend, keys.parent(_KEY))
            await backend.put(_KEY, data, condition=IfAbsent())
        except ObjectExistsError:
            _log.debug("%s has root metadata already", backend.root)


async def read_root_metadata(backend: StorageBackend) -> Mapping[str, Any]:
    """The run's own metadata; empty if none was stored."""
    found = await _stored(backend)
    # Orbax takes what stands beside the caller's object for a part of it.
    return {} if found is None else {**found.custom_metadata, **found.extra}


async def _stored(backend: StorageBackend) -> RootMetadata | None:
    for key in (_KEY, _OLD_KEY):
        try:
            data = await backend.get(key)
        except ObjectNotFoundError:
            continue
        return RootMetadata.from_bytes(data, source=keys.join(backend.root, key))
    return None
