"""How array bytes are stored and read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from holdfast_checkpointer.arrays.sharing import Slicing
from holdfast_checkpointer.errors import UnsupportedOptionError
from holdfast_metadata import MetadataError, dtype_name

MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """How one array is stored; a field that is None leaves the choice to the wider options.

    Attributes:
        dtype: The dtype to store, and to come back as. It is for arrays and NumPy scalars:
            Python numbers are stored exactly; text, bytes, PRNG keys and the states of
            generators as they are. Within a kind (bool, int, float, complex) or from int to
            float; anything else, and an integer that the dtype cannot hold exactly, is refused.
        chunk_byte_size: A chunk is at most this large; it is smaller where several processes
            hold the array and divide it.
        shard_axes: The axes to cut into chunks first, before the leading ones. Axes that a
            leaf does not have are refused where the options are for that leaf alone.

    Checked when they are used, so that the message can name the leaf.
    """

    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] | None = None


_Storage = StorageOptions  # its name is taken inside `ArraySaveOptions`
ScopedStorageOptions = Callable[[Any, Any], StorageOptions | None]


def storage_problem(dtype: Any, chunk_byte_size: Any, shard_axes: Any) -> str | None:
    """Why storage options are wrong whatever the leaf, in words; None if they are not."""
    if dtype is not None:
        try:
            dtype_name(dtype)
        except MetadataError as error:
            return f"dtype: {error}"
    if chunk_byte_size is not None and not (_is_whole(chunk_byte_size) and chunk_byte_size > 0):
        return f"chunk_byte_size must be a whole number of at least 1, got {chunk_byte_size!r}"
    if shard_axes is None:
        return None
    if not isinstance(shard_axes, tuple | list) or not all(
        _is_whole(axis) and axis >= 0 for axis in shard_axes
    ):
        return f"shard_axes must be a tuple of axes from 0 upwards, got {shard_axes!r}"
    if len(set(shard_axes)) < len(shard_axes):
        return f"shard_axes names an axis twice: {shard_axes!r}"
    return None


@dataclass(frozen=True, kw_only=True)
class ArraySaveOptions:
    """How arrays are written; also called `ArrayOptions.Saving`.

    Attributes:
        chunk_bytes: A chunk, the unit of digest and of reading, is at most this large; larger only
            where a device's part of an axis has no divisor that makes less than 65,536 chunks.
        compression: None or "zstd". Trained weights are nearly random: zstd saves some 8 %
            and costs several times the time.
        small_leaf_bytes: Arrays up to this size are written as plain key/values.
        bytes_in_flight: If given, arrays are written in batches of about this many bytes,
            which bounds the memory that compression needs.
        storage_options: For every array; see `StorageOptions`.
        scoped_storage_options_creator: Called with JAX's key path and the value of every
            leaf; gives the `StorageOptions` of that leaf, whose fields win over
            `storage_options`, or None.
        use_compression: Orbax's name: True is "zstd", False no compression.
        ocdbt_target_data_file_size: About how large a data file becomes, in bytes; 0 sets no
            limit, None takes what suits the storage.
        use_ocdbt: Arrays are in one OCDBT database; only True is accepted.
        use_zarr3: Arrays are zarr 3; only True is accepted.
        enable_pinned_host_transfer: Copies to the host go through JAX's own buffers; True is
            refused.
        enable_post_merge_validation: That every chunk was written, once, is always checked
            before the commit (contents are compared with digests when they are read); False
            is refused.
        use_replica_parallel: What several processes hold is divided among them; False has the
            first of them write it. One copy is written in either case.
        min_slice_bytes_for_replica_parallel: A process writes no less of a shard for that,
            unless it writes all of it; None for 4 MiB. Chunks may be smaller.
        max_replicas_for_replica_parallel: How many of the processes that hold a shard write of
            it at most; None for all.
        enable_replica_parallel_separate_folder: Each process has one database for all that it
            writes; only False is accepted.
        enable_write_sharding_file: Shardings are always recorded; False is refused.
        array_metadata_store: Shapes of chunks are always recorded; only Orbax's default is
            accepted.

    Raises:
        ValueError: A value is impossible, or (`UnsupportedOptionError`) would have no
            effect.
    """

    StorageOptions: ClassVar[type[_Storage]] = _Storage

    chunk_bytes: int = 16 * MIB
    compression: str | None = None
    small_leaf_bytes: int = 64 << 10
    bytes_in_flight: int | None = None
    storage_options: _Storage = field(default_factory=_Storage)
    scoped_storage_options_creator: ScopedStorageOptions | None = None
    use_compression: bool | None = None
    ocdbt_target_data_file_size: int | None = None
    use_ocdbt: bool = True
    use_zarr3: bool = True
    enable_pinned_host_transfer: bool | None = None
    enable_post_merge_validation: bool = True
    use_replica_parallel: bool | None = None
    min_slice_bytes_for_replica_parallel: int | None = None
    max_replicas_for_replica_parallel: int | None = None
    enable_replica_parallel_separate_folder: bool = False
    enable_write_sharding_file: bool = True
    array_metadata_store: Any = ...

    def __post_init__(self) -> None:
        self._set_compression()
        for name in (
            "chunk_bytes",
            "bytes_in_flight",
            "min_slice_bytes_for_replica_parallel",
            "max_replicas_for_replica_parallel",
        ):
            _at_least_one(name, getattr(self, name))
        if self.use_replica_parallel not in (None, True, False):
            raise ValueError(
                f"use_replica_parallel must be a bool or None, got {self.use_replica_parallel!r}"
            )
        if self.small_leaf_bytes < 0:
            raise ValueError(f"small_leaf_bytes must not be negative, got {self.small_leaf_bytes}")
        check_file_size(self.ocdbt_target_data_file_size)
        if not isinstance(self.storage_options, _Storage):
            raise ValueError(
                f"storage_options must be StorageOptions, got {self.storage_options!r:.60}"
            )
        chosen = self.storage_options
        problem = storage_problem(chosen.dtype, chosen.chunk_byte_size, chosen.shard_axes)
        if problem:
            raise ValueError(f"storage_options: {problem}")
        creator = self.scoped_storage_options_creator
        if creator is not None and not callable(creator):
            raise ValueError(f"scoped_storage_options_creator must be callable, got {creator!r}")
        for name, (accepted, because) in _SAVED_ALWAYS.items():
            _refuse_others(name, getattr(self, name), accepted, because)

    @property
    def slicing(self) -> Slicing:
        """How what several processes hold is divided among them."""
        return Slicing(
            self.use_replica_parallel is not False,
            self.min_slice_bytes_for_replica_parallel or Slicing.least_bytes,
            self.max_replicas_for_replica_parallel,
        )

    def _set_compression(self) -> None:
        if self.compression not in (None, "zstd"):
            raise ValueError(f"compression must be None or 'zstd', got {self.compression!r}")
        if self.use_compression not in (None, True, False):
            raise ValueError(f"use_compression must be a bool, got {self.use_compression!r}")
        if self.use_compression is False and self.compression is not None:
            raise ValueError(f"use_compression=False contradicts compression={self.compression!r}")
        if self.use_compression:
            object.__setattr__(self, "compression", "zstd")


_SAVED_ALWAYS: dict[str, tuple[tuple[Any, ...], str]] = {
    "use_ocdbt": ((True,), "holdfast writes one OCDBT database; it reads all of Orbax's layouts"),
    "use_zarr3": ((True,), "holdfast writes zarr 3; it reads zarr 2 as well"),
    "enable_pinned_host_transfer": ((None, False), "copies go through JAX's own host buffers"),
    "enable_post_merge_validation": ((True,), "every save checks that all chunks were written"),
    "enable_replica_parallel_separate_folder": (
        (False,),
        "each process has one database for all that it writes",
    ),
    "enable_write_sharding_file": ((True,), "shardings are part of the checkpoint"),
    "array_metadata_store": ((...,), "the shapes of chunks are part of the checkpoint"),
}


@dataclass(frozen=True, kw_only=True)
class LoadAndBroadcastOptions:
    """Which replica of arrays reads, with `use_load_and_broadcast`.

    Attributes:
        replica_axis_index: Along which axis of its mesh an array's replicas lie.
        primary_replica_id: Which of them reads.
        broadcast_memory_limit_bytes: About how much memory of each device the broadcast may
            take at once; by default what `broadcast_memory_scaling_factor` says.
        broadcast_memory_scaling_factor: Which part of a device's free memory that is, where the
            device tells of it; more than half a gigabyte is never taken by default.

    Raises:
        ValueError: A value is impossible.
    """

    replica_axis_index: int = 0
    primary_replica_id: int = 0
    broadcast_memory_limit_bytes: int | None = None
    broadcast_memory_scaling_factor: float | None = 0.75

    def __post_init__(self) -> None:
        for name in ("replica_axis_index", "primary_replica_id"):
            value = getattr(self, name)
            if not _is_whole(value) or value < 0:
                raise ValueError(f"{name} must be a whole number from 0 upwards, got {value!r}")
        _at_least_one("broadcast_memory_limit_bytes", self.broadcast_memory_limit_bytes)
        scale = self.broadcast_memory_scaling_factor
        if scale is not None and not 0 < scale <= 1:
            raise ValueError(
                f"broadcast_memory_scaling_factor must be above 0 and at most 1, got {scale!r}"
            )


def _load_and_broadcast(value: Any) -> LoadAndBroadcastOptions:
    """The options, also those of Orbax's class of this name."""
    if value is None:
        return LoadAndBroadcastOptions()
    if isinstance(value, LoadAndBroadcastOptions):
        return value
    names = [each.name for each in fields(LoadAndBroadcastOptions)]
    if not all(hasattr(value, name) for name in names):
        raise TypeError(
            "load_and_broadcast_options must be a LoadAndBroadcastOptions or None, got a "
            f"{type(value).__name__}"
        )
    return LoadAndBroadcastOptions(**{name: getattr(value, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class ArrayLoadOptions:
    """How arrays are read; also called `ArrayOptions.Loading`.

    Attributes:
        bytes_in_flight: About how many bytes may be under way between storage and the
            arrays that are being filled; by default what the storage needs to be busy.
        verify: Compare every chunk with its digest. Without it damage goes unseen.
        enable_padding_and_truncation: Where the shape of a target differs from the saved one,
            pad with zeros or truncate, at the end of each axis. Off, that is an error. The
            number of axes must be the same in either case; PRNG keys are never padded.
        raise_array_data_missing_error: A chunk that is missing is damage. False reads it as
            zeros where Orbax wrote the checkpoint; holdfast's own are always checked.
        use_load_and_broadcast: In a job of several processes, all of which load the same with
            it, arrays that lie in several replicas along an axis of their mesh are read by the
            processes of one of them; the others get their bytes over the devices, so the
            storage is read once however many replicas there are. Nothing else may run on the
            devices meanwhile. It changes nothing in one process, which reads each part once.
        load_and_broadcast_options: Which axis and replica, a `LoadAndBroadcastOptions`.

    Raises:
        ValueError: A value is impossible, or (`UnsupportedOptionError`) would have no
            effect.
    """

    bytes_in_flight: int | None = None
    verify: bool = True
    enable_padding_and_truncation: bool = False
    raise_array_data_missing_error: bool = True
    use_load_and_broadcast: bool = False
    load_and_broadcast_options: Any = None

    def __post_init__(self) -> None:
        _at_least_one("bytes_in_flight", self.bytes_in_flight)
        chosen = _load_and_broadcast(self.load_and_broadcast_options)
        object.__setattr__(self, "load_and_broadcast_options", chosen)


def check_file_size(value: Any) -> None:
    """Refuses a target size of data files that is none.

    Raises:
        ValueError: It is neither None nor a whole number from 0 upwards.
    """
    if value is not None and not (_is_whole(value) and value >= 0):
        raise ValueError(
            f"ocdbt_target_data_file_size must be None or a whole number of bytes, got {value!r}"
        )


def _at_least_one(name: str, value: Any) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_others(name: str, value: Any, accepted: tuple[Any, ...], because: str) -> None:
    if not any(value is one or value == one for one in accepted) and not _is_orbax_default(value):
        shown = " or ".join(map(repr, accepted))
        raise UnsupportedOptionError(
            f"{name}={value!r} has no meaning here: {because}. Accepted: {shown}"
        )


def _is_orbax_default(value: Any) -> bool:
    """Whether this is the store that Orbax's options carry when nobody has chosen one."""
    kind = type(value)
    return kind.__name__ == "Store" and kind.__module__.startswith("orbax.checkpoint.")
