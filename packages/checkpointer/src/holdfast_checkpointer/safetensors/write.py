"""Writing safetensors files: in shards, the one that makes them visible last."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast_checkpointer.safetensors.collect import Collected, Tensor, values
from holdfast_checkpointer.safetensors.dtypes import bits_of, packed
from holdfast_checkpointer.safetensors.files import (
    INDEX,
    INDEX_SUFFIX,
    SUFFIX,
    find_files,
    shard_name,
    shard_of,
)
from holdfast_checkpointer.safetensors.header import HEADER_LIMIT, encode_header, entry_size
from holdfast_storage import (
    DamagedCheckpointError,
    DestinationOccupiedError,
    IfAbsent,
    IfVersion,
    ObjectExistsError,
    ObjectNotFoundError,
    ObjectVersion,
    PreconditionFailedError,
    StorageBackend,
    StorageError,
    StorageTimeoutError,
    keys,
)
from holdfast_storage.commit import occupant, read_record

_log = logging.getLogger(__name__)
_STEM = "model"
SINGLE = _STEM + SUFFIX


def plan_shards(
    tensors: Sequence[Tensor],
    texts: Mapping[str, str],
    *,
    max_bytes: int,
    header_limit: int = HEADER_LIMIT,
) -> list[list[Tensor]]:
    """Deals tensors out to files, in order; one that is larger than `max_bytes` has its own.

    Raises:
        ValueError: The metadata alone is more than a header may have.
    """
    base = sum(entry_size(key, ()) + entry_size(value, ()) for key, value in texts.items()) + 64
    shards: list[list[Tensor]] = [[]]
    size, header = 0, base
    for tensor in tensors:
        entry = entry_size(tensor.name, tensor.shape)
        if base + entry > header_limit:
            raise ValueError(
                f"the name of tensor {tensor.name!r:.60} and the metadata take more than the "
                f"{header_limit} bytes that the format allows a header"
            )
        if shards[-1] and (size + tensor.size > max_bytes or header + entry > header_limit):
            shards.append([])
            size, header = 0, base
        shards[-1].append(tensor)
        size += tensor.size
        header += entry
    # Widest first, as the format's own library has them: each is then aligned to its width.
    return [sorted(shard, key=lambda tensor: -bits_of(tensor.dtype)) for shard in shards]


async def write_file(
    backend: StorageBackend,
    key: str,
    collected: Collected,
    shard: Sequence[Tensor],
    *,
    overwrite: bool,
) -> None:
    """Writes everything as one file, which is there whole or not at all.

    Raises:
        DestinationOccupiedError: Something is there; it was not touched.
    """
    await _refuse_checkpoint(backend, key)
    if (await backend.children(key)).objects or (not overwrite and await _exists(backend, key)):
        raise _occupied(backend, key, "something is here already")
    data = await _encode(collected, shard)
    await _put(backend, key, data, overwrite=overwrite)


async def write_folder(
    backend: StorageBackend,
    folder: str,
    collected: Collected,
    shards: Sequence[Sequence[Tensor]],
    *,
    overwrite: bool,
) -> None:
    """Writes shards and then the index that makes a model of them; what else is there stays.

    One shard alone is `model.safetensors`, without an index. An earlier set is replaced by one
    put, and removed after it. What fails removes what it wrote.

    Raises:
        DestinationOccupiedError: Safetensors files are there, or a checkpoint; they were not
            touched.
    """
    await _refuse_checkpoint(backend, folder)
    there = await _look(backend, folder)
    if there.names and not overwrite:
        raise _occupied(backend, folder, f"{min(there.names)!r} is here already")
    if len(shards) == 1 and there.names <= {SINGLE}:
        data = await _encode(collected, shards[0])
        await _put(backend, keys.join(folder, SINGLE), data, overwrite=overwrite)
        return
    # Under names of their own: the index that is there names the old ones until it is replaced.
    stem = f"{_STEM}-{uuid.uuid4().hex[:8]}" if there.names else _STEM
    written: list[str] = []
    weight_map: dict[str, str] = {}
    try:
        for number, shard in enumerate(shards, 1):
            name = shard_name(stem, number, len(shards))
            data = await _encode(collected, shard)
            await _put(backend, keys.join(folder, name), data, overwrite=False)
            written.append(name)
            weight_map |= {tensor.name: name for tensor in shard}
            del data
    except BaseException:
        await asyncio.shield(_remove(backend, folder, written))
        raise
    total = sum(tensor.size for tensor in collected.tensors)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    data = json.dumps(document, indent=2, ensure_ascii=False).encode()
    await _publish(backend, folder, data, written, expected=there.index)
    await _remove(backend, folder, there.replaced)


async def _publish(
    backend: StorageBackend,
    folder: str,
    data: bytes,
    written: Sequence[str],
    *,
    expected: ObjectVersion | None,
) -> None:
    """Puts the index in place of the one that was seen; of two exports at once, one wins.

    Whatever a failed put says, its own first try may have happened and the reply been lost: the
    index that is there tells. Shards go if it is certain that it does not name them.

    Raises:
        DestinationOccupiedError: Another export was faster; it was not touched.
    """
    key = keys.join(folder, INDEX)
    condition = IfAbsent() if expected is None else IfVersion(expected)
    try:
        await backend.put(key, data, condition=condition)
    except StorageError as error:
        try:
            found = await backend.get(key)
        except ObjectNotFoundError:
            found = b""
        if found == data:
            return
        if isinstance(error, ObjectExistsError | PreconditionFailedError):
            await _remove(backend, folder, written)
            raise _occupied(backend, key, "another export was faster") from error
        if not isinstance(error, StorageTimeoutError):  # it may arrive yet
            await _remove(backend, folder, written)
        raise


@dataclass(frozen=True)
class _There:
    """What a folder has already.

    Attributes:
        names: Safetensors files and indexes.
        replaced: Those of them that a new set takes the place of.
        index: The version of the index, seen before anything else; None if there is none.
    """

    names: frozenset[str]
    replaced: tuple[str, ...]
    index: ObjectVersion | None


async def _look(backend: StorageBackend, folder: str) -> _There:
    try:
        index = (await backend.stat(keys.join(folder, INDEX))).version
    except ObjectNotFoundError:
        index = None
    listing = await backend.children(folder)
    names = {keys.leaf(info.key) for info in listing.objects}
    names = {n for n in names if n.endswith((SUFFIX, INDEX_SUFFIX)) and not n.startswith(".")}
    replaced = {name for name in names if name == SINGLE or _is_ours(name)}
    if INDEX in names:
        try:
            found = await find_files(backend, keys.join(folder, INDEX))
        except DamagedCheckpointError:
            found = None  # it names nothing that could be removed
        if found is not None:
            replaced |= {keys.relative(key, folder) for key in found.objects}
    return _There(frozenset(names), tuple(sorted(replaced)), index)


def _is_ours(name: str) -> bool:
    shard = shard_of(name)
    return shard is not None and (shard[0] == _STEM or shard[0].startswith(f"{_STEM}-"))


async def _refuse_checkpoint(backend: StorageBackend, final: str) -> None:
    """Refuses a place that is a checkpoint or in one, and a file where a folder is wanted."""
    found = await occupant(backend, final)
    if found.kind in ("ours", "orbax", "uncommitted"):
        raise _occupied(backend, final, "a checkpoint is here, or a save that may become one")
    above = keys.parent(final)
    if (await read_record(backend, above)).committed:
        raise _occupied(backend, final, "this is inside a checkpoint")


def _occupied(backend: StorageBackend, key: str, why: str) -> DestinationOccupiedError:
    return DestinationOccupiedError(
        f"{why}; nothing was touched: export elsewhere, or pass overwrite=True to replace "
        "safetensors files",
        key=key,
        root=backend.root,
    )


async def _exists(backend: StorageBackend, key: str) -> bool:
    try:
        await backend.stat(key)
    except ObjectNotFoundError:
        return False
    return True


async def _put(backend: StorageBackend, key: str, data: bytes, *, overwrite: bool) -> None:
    try:
        await backend.put(key, data, condition=None if overwrite else IfAbsent())
    except ObjectExistsError as error:
        raise _occupied(backend, key, "something is here already") from error


async def _remove(backend: StorageBackend, folder: str, names: Sequence[str]) -> None:
    """Removes files that nothing refers to any more; what stays is told, and harms nothing."""
    for name in names:
        try:
            await backend.delete(keys.join(folder, name))
        except StorageError:
            _log.warning("could not remove %s of %s", name, folder, exc_info=True)


async def _encode(collected: Collected, tensors: Sequence[Tensor]) -> bytes:
    described = [(tensor.name, tensor.dtype, tensor.shape) for tensor in tensors]
    header = encode_header(described, collected.texts)
    # Made whole at once, and its value is its own buffer: a shard is in memory once.
    buffer = io.BytesIO()
    buffer.seek(len(header) + sum(tensor.size for tensor in tensors) - 1)
    buffer.write(b" ")
    buffer.seek(0)
    buffer.write(header)
    async for part in values(collected, tensors):
        buffer.write(await asyncio.to_thread(packed, part))
    return buffer.getvalue()
