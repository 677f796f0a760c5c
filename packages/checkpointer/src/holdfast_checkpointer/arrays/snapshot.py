"""The blocking part of a save: arrays that can no longer change under us."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.arrays import plan
from holdfast_checkpointer.arrays.casting import convert
from holdfast_checkpointer.arrays.formats import storage_dtype
from holdfast_checkpointer.arrays.sharing import ArrayPart, Share
from holdfast_checkpointer.multihost.errors import during

_COPY = "the copy to the host"


@dataclass(frozen=True)
class Shard:
    """A piece of an array on the host.

    Attributes:
        region: Where in the array it lies.
        data: C-contiguous, in native byte order.
    """

    region: plan.Region
    data: np.ndarray[Any, Any]


@dataclass(frozen=True)
class StorageRule:
    """How one array is stored, where it is not as it is.

    Attributes:
        dtype: The dtype to convert it to; None for its own.
        chunk_bytes: A chunk is at most this large; None for what holds for all.
        shard_axes: Axes to cut chunks along first.
    """

    dtype: np.dtype[Any] | None = None
    chunk_bytes: int | None = None
    shard_axes: tuple[int, ...] = ()


AS_IT_IS = StorageRule()


@dataclass(frozen=True)
class StagedArray:
    """An array ready to be written.

    Attributes:
        name: Its parameter name.
        shape: Of the whole array.
        dtype: Its dtype on storage.
        shards: Pieces of equal shape that cover it once; `converted` gives them that dtype.
        rule: How it is stored.
        part: What this process writes of it, in a job of several; None for all of it. The
            shards then cover at least that.
    """

    name: str
    shape: plan.Shape
    dtype: np.dtype[Any]
    shards: tuple[Shard, ...]
    rule: StorageRule = AS_IT_IS
    part: ArrayPart | None = None

    @property
    def write_shape(self) -> plan.Shape:
        """The shape of what one device holds."""
        if self.part is not None:
            return self.part.write_shape
        return plan.extent(self.shards[0].region)

    @property
    def is_written(self) -> bool:
        """Whether this process writes anything of it."""
        return self.part is None or self.part.is_written

    @property
    def nbytes(self) -> int:
        """Bytes of all shards, on storage."""
        return sum(shard.data.size for shard in self.shards) * self.dtype.itemsize

    @property
    def is_converted(self) -> bool:
        """Whether the shards have the dtype already."""
        return self.rule.dtype is None or all(s.data.dtype == self.dtype for s in self.shards)

    def converted(self) -> StagedArray:
        """The array with its shards in its dtype: work for the CPU, in the background."""
        shards = tuple(Shard(s.region, convert(s.data, self.dtype)) for s in self.shards)
        return dataclasses.replace(self, shards=shards)


def snapshot_all(
    named: Sequence[tuple[str, Any]],
    rules: Sequence[StorageRule] | None = None,
    *,
    transfer_bytes: int | None = None,
    copy_host: bool = True,
    share: Share | None = None,
) -> list[StagedArray]:
    """Takes a snapshot of many arrays: `jax.Array` or `np.ndarray`.

    NumPy arrays are copied. JAX arrays on the CPU are held, not copied: a step that
    donates them meanwhile allocates anew. From accelerators all copies start before the
    first is waited for.

    Args:
        named: The arrays, by name.
        rules: How each is stored; None for as they are.
        transfer_bytes: About how many bytes may be on the way from devices at once; None for
            all of them.
        copy_host: Whether to copy NumPy arrays; else the caller leaves them alone.
        share: How they are divided among the processes of a job; None if there is one.

    Raises:
        ValueError: A shard is only on processes that take no part.
    """
    taken: list[StagedArray] = []
    for batch in transfers(named, transfer_bytes):
        for name, value in batch:
            if isinstance(value, jax.Array) and not _on_cpu(value):
                with during(_COPY, name):
                    for shard in value.addressable_shards:
                        shard.data.copy_to_host_async()
        for name, value in batch:
            rule = AS_IT_IS if rules is None else rules[len(taken)]
            if share is None:
                _require_whole(name, value)
                array = _ruled(_snapshot(name, value, copy_host=copy_host), rule)
            else:
                array = _shared(name, value, rule, share, copy_host=copy_host)
            taken.append(array)
    return taken


def _require_whole(name: str, value: Any) -> None:
    """Refuses an array of which a process that saves alone has only a part."""
    if not isinstance(value, jax.Array) or value.is_fully_addressable:
        return
    shape = tuple(value.shape)

    def bounds(index: Any) -> tuple[tuple[int, int], ...]:
        return tuple((part.start, part.stop) for part in plan.normalized(index, shape))

    wanted = {bounds(index) for index in value.sharding.devices_indices_map(shape).values()}
    missing = wanted - {bounds(shard.index) for shard in value.addressable_shards}
    if missing:
        raise ValueError(
            f"the array {name!r}: the shard {list(min(missing))} is only on other processes, and "
            "this one saves alone; let all processes that have a part of it take part"
        )


def _ruled(array: StagedArray, rule: StorageRule) -> StagedArray:
    if rule is AS_IT_IS:
        return array
    return dataclasses.replace(array, dtype=rule.dtype or array.dtype, rule=rule)


def _shared(
    name: str, value: Any, rule: StorageRule, share: Share, *, copy_host: bool
) -> StagedArray:
    """What this process has of an array, with what it writes of it."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        dtype = np.dtype(value.dtype)
        array = _ruled(StagedArray(name, value.shape, dtype, ()), rule)
        whole_shape = None
    else:
        array = _ruled(_snapshot(name, value, copy_host=copy_host), rule)
        whole_shape = array.write_shape
    itemsize = storage_dtype(array.dtype).itemsize
    try:
        part = share.part(value, whole_shape, itemsize, rule.chunk_bytes, rule.shard_axes)
    except ValueError as error:
        raise ValueError(f"the array {name!r}: {error}") from error
    if whole_shape is None:
        with during(_COPY, name):
            array = dataclasses.replace(array, shards=_shards_of(value, part))
    return dataclasses.replace(array, part=part)


def _shards_of(value: jax.Array, part: ArrayPart) -> tuple[Shard, ...]:
    """The shards on this process that have a chunk which it writes."""
    shape = tuple(value.shape)
    found: dict[tuple[tuple[int, int], ...], Shard] = {}
    for shard in value.addressable_shards:
        region = plan.normalized(shard.index, shape)
        key = tuple((bounds.start, bounds.stop) for bounds in region)
        if key in found:
            continue
        indices = (index for index, _ in plan.chunks_of(shape, part.chunk_shape, region))
        if any(index in part.owned for index in indices):
            data = np.asarray(shard.data)
            found[key] = Shard(region, np.ascontiguousarray(data).reshape(data.shape))
    return tuple(found[key] for key in sorted(found))


def transfers(
    named: Sequence[tuple[str, Any]], limit: int | None
) -> Iterator[Sequence[tuple[str, Any]]]:
    """The arrays in batches of at most `limit` bytes on devices; a larger array goes alone."""
    if limit is None:
        yield named
        return
    batch: list[tuple[str, Any]] = []
    size = 0
    for name, value in named:
        nbytes = value.nbytes if isinstance(value, jax.Array) else 0
        if batch and size + nbytes > limit:
            yield batch
            batch, size = [], 0
        batch.append((name, value))
        size += nbytes
    yield batch


def _on_cpu(value: jax.Array) -> bool:
    devices: set[Any] = value.sharding.device_set
    return all(device.platform == "cpu" for device in devices)


def _snapshot(name: str, value: Any, *, copy_host: bool) -> StagedArray:
    with during(_COPY, name):
        return _copied(name, value, copy_host=copy_host)


def _copied(name: str, value: Any, *, copy_host: bool) -> StagedArray:
    if not isinstance(value, jax.Array):
        host = np.array(value, order="C", copy=copy_host or None)
        if not host.dtype.isnative:
            host = host.astype(host.dtype.newbyteorder("="))
        return StagedArray(name, host.shape, host.dtype, (Shard(plan.whole(host.shape), host),))
    if value.is_fully_replicated:
        host = np.ascontiguousarray(np.asarray(value.addressable_shards[0].data))
        host = host.reshape(value.shape)
        return StagedArray(name, value.shape, host.dtype, (Shard(plan.whole(value.shape), host),))
    found: dict[tuple[tuple[int, int], ...], Shard] = {}
    for shard in value.addressable_shards:
        region = plan.normalized(shard.index, value.shape)
        key = tuple((part.start, part.stop) for part in region)
        if key not in found:  # replicas hold the same bytes: one of them is enough
            found[key] = Shard(region, np.ascontiguousarray(np.asarray(shard.data)))
    shards = tuple(found[key] for key in sorted(found))
    if len({shard.data.shape for shard in shards}) > 1:
        shards = (_assemble(value.shape, shards),)
    return StagedArray(name, value.shape, shards[0].data.dtype, shards)


def _assemble(shape: plan.Shape, shards: Sequence[Shard]) -> Shard:
    """Uneven shards fit no regular grid of chunks: they are written as one piece."""
    buffer = np.empty(shape, shards[0].data.dtype)
    for shard in shards:
        buffer[shard.region] = shard.data
    return Shard(plan.whole(shape), buffer)
