"""The sequence `_lease/<epoch>` as a store holds it."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast_metadata import LEASE_DIR, Lease, lease_epoch, lease_name
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import IfAbsent, ObjectInfo, ObjectVersion

_UNCERTAIN = (errors.TransientStorageError, errors.StorageTimeoutError)


def lease_key(run: str, epoch: int) -> str:
    """The object of an epoch."""
    return keys.join(run, LEASE_DIR, lease_name(epoch))


async def list_epochs(backend: StorageBackend, run: str = "") -> Mapping[int, ObjectInfo]:
    """The epochs that are there, and the version of each: one listing. Writes nothing."""
    listing = await backend.children(keys.join(run, LEASE_DIR))
    named = {lease_epoch(keys.leaf(info.key)): info for info in listing.objects}
    return {epoch: info for epoch, info in named.items() if epoch is not None}


async def read_epoch(backend: StorageBackend, epoch: int, run: str = "") -> Lease | None:
    """What an epoch says; None if it has been cleared away.

    Raises:
        MetadataError: It cannot be read.
    """
    key = lease_key(run, epoch)
    try:
        return Lease.from_bytes(await backend.get(key), source=keys.join(backend.root, key))
    except errors.ObjectNotFoundError:
        return None


async def create_epoch(backend: StorageBackend, lease: Lease) -> ObjectVersion | None:
    """Creates an epoch; None if another process has it. An unknown outcome is asked for."""
    key = lease_key("", lease.epoch)
    try:
        return await backend.put(key, lease.to_bytes(), condition=IfAbsent())
    except (errors.ObjectExistsError, *_UNCERTAIN) as error:
        there = await read_epoch(backend, lease.epoch)
        if there is None and isinstance(error, _UNCERTAIN):
            raise
        if there is None or there.by.attempt != lease.by.attempt:
            return None
    return (await backend.stat(key)).version


async def refresh_epoch(backend: StorageBackend, lease: Lease) -> ObjectVersion:
    """Writes one's own epoch again; says which version that is.

    Without a condition: only its holder writes to it, and a local disk remembers each
    conditional replacement by a file, which would be one every few seconds for as long as a
    job runs. A late refresh may so bring back an epoch that was cleared away: one that is not
    the highest, and means nothing.
    """
    key = lease_key("", lease.epoch)
    return await backend.put(key, lease.to_bytes(), durable=False, parents=False)
