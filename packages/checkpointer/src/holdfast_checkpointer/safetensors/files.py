"""Finding safetensors files by a path: one file, a folder of them, or an index of shards."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.errors import InvalidLayoutError
from holdfast_checkpointer.safetensors.header import (
    HEADER_LIMIT,
    LENGTH_BYTES,
    BadHeader,
    Header,
    TensorInfo,
    header_length,
    parse_header,
)
from holdfast_metadata import MetadataError, parse_json
from holdfast_storage import (
    ByteRange,
    CheckpointChangedError,
    DamagedCheckpointError,
    InvalidKeyError,
    ObjectInfo,
    ObjectNotFoundError,
    ObjectVersion,
    StorageBackend,
    keys,
)

SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"
INDEX = "model" + INDEX_SUFFIX
_FIRST_READ = 64 << 10
_INDEX_LIMIT = 4 * HEADER_LIMIT
_RESTARTS = 3


@dataclass(frozen=True)
class Found:
    """Files that a path leads to; nothing of them has been read but the index.

    Attributes:
        backend: Where they are.
        final: The path in it.
        objects: By key, as listed.
        index: The index, if one says which files belong together.
        weight_map: What it says: keys by tensor name.
    """

    backend: StorageBackend
    final: str
    objects: Mapping[str, ObjectInfo]
    index: ObjectInfo | None = None
    weight_map: Mapping[str, str] = field(default_factory=dict)

    @property
    def versions(self) -> Mapping[str, ObjectVersion]:
        """By which it is known whether anything was replaced."""
        known = {key: info.version for key, info in self.objects.items()}
        return known | ({self.index.key: self.index.version} if self.index else {})

    @property
    def label(self) -> str:
        """The path, for messages."""
        return f"{self.backend.root.rstrip('/')}/{self.final}"


@dataclass(frozen=True)
class TensorFile:
    """One file whose header was read."""

    info: ObjectInfo
    header: Header


@dataclass(frozen=True)
class TensorFiles:
    """Files whose headers were read.

    Attributes:
        found: What they are of.
        files: In the order of their keys.
        tensors: By name, with the file each is in.
    """

    found: Found
    files: tuple[TensorFile, ...]
    tensors: Mapping[str, tuple[TensorFile, TensorInfo]]

    @property
    def names(self) -> Collection[str]:
        """Every tensor there is, whether its file was opened or not."""
        return self.found.weight_map or self.tensors

    async def unchanged(self) -> bool:
        """Whether the files are still those whose headers were read."""
        backend = self.found.backend
        before = [file.info for file in self.files]
        before += [self.found.index] if self.found.index else []

        async def same(info: ObjectInfo) -> bool:
            try:
                return (await backend.stat(info.key)).version == info.version
            except ObjectNotFoundError:
                return False

        return all(await _limited(backend, map(same, before)))


async def find_files(backend: StorageBackend, final: str) -> Found | None:
    """What a path leads to; None if to no safetensors files.

    In a folder an index decides, and files that it does not name are another's; without an
    index every file belongs. Hidden files never do.

    Raises:
        DamagedCheckpointError: The index is damaged, or names a file that is missing.
        InvalidLayoutError: Several indexes are there, so that one must be named.
    """
    if final.endswith((SUFFIX, INDEX_SUFFIX)):
        try:
            info = await backend.stat(final)
        except ObjectNotFoundError:
            pass  # a folder may be called so
        else:
            if final.endswith(SUFFIX):
                return Found(backend, final, {final: info})
            return await _by_index(backend, final, info)
    listing = await backend.children(final)
    there = [info for info in listing.objects if not keys.leaf(info.key).startswith(".")]
    indexes = [info for info in there if info.key.endswith(INDEX_SUFFIX)]
    if len(indexes) > 1:
        indexes = [info for info in indexes if keys.leaf(info.key) == INDEX]
        if not indexes:
            raise InvalidLayoutError(
                f"several indexes (*{INDEX_SUFFIX}) are here: give the path of the one to use",
                key=final,
                root=backend.root,
            )
    if indexes:
        return await _by_index(backend, final, indexes[0], there)
    files = {info.key: info for info in there if info.key.endswith(SUFFIX)}
    return Found(backend, final, files) if files else None


async def _by_index(
    backend: StorageBackend, final: str, index: ObjectInfo, there: Iterable[ObjectInfo] = ()
) -> Found:
    """What an index names; if it is replaced meanwhile, what the new one names."""
    for _ in range(_RESTARTS):
        try:
            return await _read_index(backend, final, index, there)
        except (DamagedCheckpointError, ObjectNotFoundError):
            now = await backend.stat(index.key)
            if now.version == index.version:
                raise
            index, there = now, ()
    raise CheckpointChangedError(
        f"the index was replaced {_RESTARTS} times while it was read",
        key=index.key,
        root=backend.root,
    )


async def _read_index(
    backend: StorageBackend, final: str, index: ObjectInfo, there: Iterable[ObjectInfo]
) -> Found:
    def damaged(why: str) -> NoReturn:
        name = keys.leaf(index.key)
        raise DamagedCheckpointError(
            f"the index {name!r} {why}", file=name, key=index.key, root=backend.root
        )

    if index.size > _INDEX_LIMIT:
        damaged(f"has {index.size} bytes, more than {_INDEX_LIMIT}")
    data = await backend.get(index.key)
    try:
        document = parse_json(data, source=f"the index {keys.leaf(index.key)!r}")
    except MetadataError as error:
        raise DamagedCheckpointError(
            str(error), file=keys.leaf(index.key), key=index.key, root=backend.root
        ) from error
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict):
        damaged("has no object weight_map")
    for name, file in names.items():
        if not isinstance(file, str) or not file.endswith(SUFFIX) or not _is_key(file):
            damaged(f"puts the tensor {name!r} into {file!r:.80}, which names no file beside it")
    folder = keys.parent(index.key)
    weight_map = {name: keys.join(folder, file) for name, file in names.items()}
    listed = {info.key: info for info in there}
    objects: dict[str, ObjectInfo] = {}
    for name, key in weight_map.items():
        if key in objects:
            continue
        try:
            objects[key] = listed.get(key) or await backend.stat(key)
        except ObjectNotFoundError:
            damaged(f"puts the tensor {name!r} into {names[name]!r}, which is missing")
    return Found(backend, final, objects, index, weight_map)


def _is_key(name: str) -> bool:
    try:
        keys.check_key(name)
    except InvalidKeyError:
        return False
    return bool(name)


async def open_files(found: Found, wanted: Collection[str] | None = None) -> TensorFiles:
    """Reads the headers: of every file, or where an index says it of those that are needed.

    Raises:
        DamagedCheckpointError: A file is not what the format says, or not what the index
            says; names file and tensor.
        MetadataError: A tensor is in several files, or of an unknown dtype.
    """
    chosen = sorted(found.objects)
    if found.index is not None and wanted is not None:
        needed = {found.weight_map[name] for name in wanted if name in found.weight_map}
        chosen = [key for key in chosen if key in needed]
    files = await _limited(found.backend, (_open(found, found.objects[key]) for key in chosen))
    tensors: dict[str, tuple[TensorFile, TensorInfo]] = {}
    for file in files:
        for name, info in file.header.tensors.items():
            if name in tensors:
                first = keys.leaf(tensors[name][0].info.key)
                raise MetadataError(
                    f"the tensor {name!r} is in {first!r} and in {keys.leaf(file.info.key)!r} of "
                    f"{found.label}: give the path of one file, or of an index"
                )
            tensors[name] = (file, info)
    if found.index is not None:
        _compare(found, files)
    else:
        _require_all_shards(found)
    return TensorFiles(found, tuple(files), tensors)


def _compare(found: Found, files: Iterable[TensorFile]) -> None:
    """Index and headers say the same of the files that were opened."""
    assert found.index is not None
    index = keys.leaf(found.index.key)
    expected: dict[str, set[str]] = {}
    for name, key in found.weight_map.items():
        expected.setdefault(key, set()).add(name)
    for file in files:
        key, there = file.info.key, set(file.header.tensors)
        for name in sorted(there ^ expected[key])[:1]:
            says = "has" if name in there else "lacks"
            other = "does not name it there" if name in there else "puts it there"
            raise _damaged(found, key, name, f"{says} it, and the index {index!r} {other}")


def _require_all_shards(found: Found) -> None:
    """Files called x-00001-of-00003 are nothing without the other two.

    The index is written last, so this is what an unfinished export looks like.
    """
    names = {keys.leaf(key) for key in found.objects}
    if len(names) == 1 and found.label.endswith(SUFFIX):
        return  # the caller asked for this one
    for name in sorted(names):
        shard = shard_of(name)
        if shard is None:
            continue
        stem, _, count = shard
        missing = [
            other
            for other in (shard_name(stem, n, count) for n in range(1, min(count, 10_000) + 1))
            if other not in names
        ]
        if missing:
            raise DamagedCheckpointError(
                f"the files are not complete: {name!r} is there and {missing[0]!r} is missing, and "
                "there is no index",
                file=missing[0],
                root=found.label,
            )


def shard_name(stem: str, number: int, count: int) -> str:
    """What a shard is called.

    Examples:
        >>> shard_name("model", 1, 3)
        'model-00001-of-00003.safetensors'
    """
    return f"{stem}-{number:05d}-of-{count:05d}{SUFFIX}"


def shard_of(name: str) -> tuple[str, int, int] | None:
    """Stem, number and count of a shard's name; None if it is no shard's.

    Examples:
        >>> shard_of("model-00001-of-00003.safetensors"), shard_of("model.safetensors")
        (('model', 1, 3), None)
    """
    head, of, tail = name.removesuffix(SUFFIX).rpartition("-of-")
    stem, dash, number = head.rpartition("-")
    digits = len(tail) == len(number) == 5 and (tail + number).isdecimal()
    if not (of and dash and digits and name.endswith(SUFFIX)):
        return None
    return stem, int(number), int(tail)


async def _open(found: Found, info: ObjectInfo) -> TensorFile:
    backend = found.backend
    try:
        first = await _bytes(backend, info.key, 0, min(info.size, _FIRST_READ))
        length = header_length(first, info.size)
        data = first[LENGTH_BYTES : LENGTH_BYTES + length]
        if len(data) < length:
            got = LENGTH_BYTES + len(data)
            data += await _bytes(backend, info.key, got, LENGTH_BYTES + length)
        # A header of many megabytes is work for the CPU: not on the storage loop.
        return TensorFile(info, await asyncio.to_thread(parse_header, data, info.size))
    except ObjectNotFoundError as error:
        raise _damaged(found, info.key, "", "it is gone") from error
    except BadHeader as error:
        if error.sound:
            raise MetadataError(
                f"the tensor {error.tensor!r} of the file {keys.leaf(info.key)!r} of "
                f"{found.label} cannot be read: {error}"
            ) from error
        raise _damaged(found, info.key, error.tensor, str(error)) from error


async def _bytes(backend: StorageBackend, key: str, start: int, stop: int) -> bytes:
    if start == stop:
        return b""
    data = await backend.get(key, byte_range=ByteRange(start, stop))
    if len(data) != stop - start:
        raise BadHeader(f"it is cut off: bytes {start} to {stop} are not all there")
    return data


def _damaged(found: Found, key: str, tensor: str, why: str) -> DamagedCheckpointError:
    what = f"the tensor {tensor!r} of " if tensor else ""
    return DamagedCheckpointError(
        f"{what}the file {keys.leaf(key)!r} is damaged: {why}",
        file=keys.leaf(key),
        leaf=tensor,
        key=key,
        root=found.backend.root,
    )


async def _limited(backend: StorageBackend, coroutines: Iterable[Any]) -> list[Any]:
    limit = asyncio.Semaphore(max(1, backend.hints.max_concurrency))

    async def one(coroutine: Any) -> Any:
        async with limit:
            return await coroutine

    return await run_all([one(coroutine) for coroutine in coroutines])
