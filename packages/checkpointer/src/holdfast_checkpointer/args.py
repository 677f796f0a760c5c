"""Arguments of handlers: what to save, and what to restore into.

Named and shaped as Orbax's, so that migrating is one import line: plain dataclasses, whose
fields may be set and which others inherit from. A call looks at them before it returns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import jax

from holdfast_checkpointer.errors import NoItemError


class CheckpointArgs:
    """Base of all handler arguments."""


@dataclass
class SaveArgs:
    """How one leaf is stored; see `options.StorageOptions` for the fields they share.

    Attributes:
        aggregate: A past way of storing small arrays; `StandardSave` refuses True, and
            elsewhere it changes nothing, for small arrays share one file anyway.
        dtype: The dtype to store, and to come back as.
        chunk_byte_size: A chunk is at most this large.
        shard_axes: The axes to cut into chunks first.
    """

    aggregate: bool = False
    dtype: Any = None
    chunk_byte_size: int | None = None
    shard_axes: tuple[int, ...] = ()


@dataclass
class RestoreArgs:
    """What one leaf is restored as.

    Attributes:
        restore_type: `jax.Array`, `np.ndarray`, `int`, `float`, `bool`, `complex`, `str`,
            `bytes`, a NumPy scalar type, or `type(...)` to skip the leaf; None for what the
            target says, or for what was saved.
        dtype: The dtype to make; None for what the target says, or for the saved one.
    """

    restore_type: Any = None
    dtype: Any = None


@dataclass
class ArrayRestoreArgs(RestoreArgs):
    """What one `jax.Array` is restored as, and where to.

    Attributes:
        mesh: With `mesh_axes`, another way to give the sharding.
        mesh_axes: A `PartitionSpec`.
        sharding: Where to; also a `jax.experimental.layout.Format`. It wins over `mesh`. None
            for what the target says, or for the saved one.
        global_shape: The shape to make. One that was not saved is an error, unless `strict` is
            False.
        shape: Another name of `global_shape`.
        strict: False pads with zeros or truncates, at the end of each axis, to `global_shape`.

    Raises:
        ValueError: `shape` and `global_shape` differ, or only one of `mesh` and `mesh_axes` is
            given.
    """

    restore_type: Any = jax.Array
    mesh: Any = None
    mesh_axes: Any = None
    sharding: Any = None
    global_shape: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None
    strict: bool = True

    def __post_init__(self) -> None:
        shape, other = (
            None if found is None else tuple(found) for found in (self.global_shape, self.shape)
        )
        if shape is not None and other is not None and shape != other:
            raise ValueError(f"shape {other} and global_shape {shape} must be the same")
        self.shape = self.global_shape = shape if shape is not None else other
        if self.sharding is None and (self.mesh is None) != (self.mesh_axes is None):
            given = "mesh" if self.mesh_axes is None else "mesh_axes"
            raise ValueError(f"mesh and mesh_axes go together, got only {given}")


@dataclass
class SingleReplicaArrayRestoreArgs(ArrayRestoreArgs):
    """Like `ArrayRestoreArgs`: each process reads a part once, whatever holds copies of it.

    Attributes:
        single_replica_sharding: Accepted and not needed.
    """

    single_replica_sharding: Any = None


@dataclass
class PyTreeSave(CheckpointArgs):
    """Save a PyTree with any leaves that holdfast knows.

    Attributes:
        item: The tree.
        save_args: A tree of `SaveArgs` in the item's structure; None where there is nothing to
            say about a leaf.
        ocdbt_target_data_file_size: See `options.ArraySaveOptions`.
        custom_metadata: A JSON object to store in the item's `_METADATA`, as Orbax does.
    """

    item: Any
    save_args: Any = None
    ocdbt_target_data_file_size: int | None = None
    custom_metadata: Any = None


@dataclass
class PyTreeRestore(CheckpointArgs):
    """Restore a PyTree.

    Attributes:
        item: The target: a PyTree of arrays, `jax.ShapeDtypeStruct`, scalars, types or
            `...`; None restores what was saved.
        restore_args: A tree of `RestoreArgs` in the structure of `item`, whose fields win over
            its leaves; without `item` it is the target itself.
        transforms: None, or `{}`, which says the same as `partial_restore=True` and needs an
            `item`. Others are refused: pass `rename=` or `select=` to `load`.
        transforms_default_to_original: For `transforms`; it has no effect without.
        legacy_transform_fn: Refused likewise.
        partial_restore: The target may leave out leaves that were saved; a leaf of the target
            that was not saved is an error in either case.
        types: Named tuple classes to use in a load without a target, besides those whose
            module is imported already.
        as_orbax: Without a target, give the containers that Orbax would.
        cast: "safe" allows a target dtype of the same kind, and float for int; "unsafe"
            any.
        fallback_sharding: For arrays without a target sharding whose saved one does not
            fit the devices here.
        strict: False pads with zeros or truncates, at the end of each axis, where a target's
            shape differs from the saved one; see
            `options.ArrayLoadOptions.enable_padding_and_truncation`.
        support_layout: Take the device-local layout of `jax.Array` leaves of the target, too.
            One that a `jax.ShapeDtypeStruct` names is taken in either case.
        select: Globs over the saved key paths, such as "params/**": only leaves that one of
            them matches are read, and the result is the tree of those. See "Load a part".
        rename: Regular expressions over whole saved key paths, each with its replacement, or
            a function from path to path. The target is matched after it.
    """

    item: Any = None
    restore_args: Any = None
    transforms: Any = None
    transforms_default_to_original: bool = True
    legacy_transform_fn: Any = None
    partial_restore: bool = False
    types: Sequence[type] = field(default=(), kw_only=True)
    as_orbax: bool = field(default=False, kw_only=True)
    cast: str = field(default="safe", kw_only=True)
    fallback_sharding: Any = field(default=None, kw_only=True)
    strict: bool = field(default=True, kw_only=True)
    support_layout: bool = field(default=False, kw_only=True)
    select: str | Sequence[str] | None = field(default=None, kw_only=True)
    rename: Mapping[str, str] | Callable[[str], str] | None = field(default=None, kw_only=True)


@dataclass
class StandardSave(CheckpointArgs):
    """Save a PyTree of arrays and numbers.

    Attributes:
        item: The tree.
        save_args: See `PyTreeSave`.
        custom_metadata: See `PyTreeSave`.
    """

    item: Any
    save_args: Any = None
    custom_metadata: Any = None


@dataclass
class StandardRestore(CheckpointArgs):
    """Restore a PyTree of arrays and numbers.

    Attributes:
        item: See `PyTreeRestore`.
        strict: See `PyTreeRestore`.
        support_layout: See `PyTreeRestore`.
        fallback_sharding: See `PyTreeRestore`.
        types: See `PyTreeRestore`.
        as_orbax: See `PyTreeRestore`.
        cast: See `PyTreeRestore`.
        partial_restore: See `PyTreeRestore`.
        select: See `PyTreeRestore`.
        rename: See `PyTreeRestore`.
    """

    item: Any = None
    strict: bool = True
    support_layout: bool = False
    fallback_sharding: Any = None
    types: Sequence[type] = field(default=(), kw_only=True)
    as_orbax: bool = field(default=False, kw_only=True)
    cast: str = field(default="safe", kw_only=True)
    partial_restore: bool = field(default=False, kw_only=True)
    select: str | Sequence[str] | None = field(default=None, kw_only=True)
    rename: Mapping[str, str] | Callable[[str], str] | None = field(default=None, kw_only=True)


@dataclass
class JsonSave(CheckpointArgs):
    """Save a value that JSON can express."""

    item: Any


@dataclass
class JsonRestore(CheckpointArgs):
    """Restore a JSON value. `item` is accepted for symmetry and not used."""

    item: Any = None


@dataclass
class ArraySave(CheckpointArgs):
    """Save one array or number.

    Attributes:
        item: The array or number.
        save_args: A `SaveArgs` for it.
    """

    item: Any
    save_args: SaveArgs | None = None


@dataclass
class ArrayRestore(CheckpointArgs):
    """Restore one array or number.

    Attributes:
        item: What to make: an array or `jax.ShapeDtypeStruct` (shape, dtype, sharding) or a
            Python number; None restores what was saved.
        restore_args: A `RestoreArgs` for it.
        cast: See `PyTreeRestore`.
        fallback_sharding: See `PyTreeRestore`.
    """

    item: Any = None
    restore_args: RestoreArgs | None = None
    cast: str = field(default="safe", kw_only=True)
    fallback_sharding: Any = field(default=None, kw_only=True)


@dataclass
class ProtoSave(CheckpointArgs):
    """Save a protocol buffer message, as text."""

    item: Any


@dataclass
class ProtoRestore(CheckpointArgs):
    """Restore a protocol buffer message.

    Attributes:
        item: The message's class.
    """

    item: Any = None


@dataclass
class JaxRandomKeySave(CheckpointArgs):
    """Save a JAX PRNG key, typed or raw."""

    item: Any


@dataclass
class JaxRandomKeyRestore(CheckpointArgs):
    """Restore a JAX PRNG key.

    Attributes:
        impl: The implementation of a typed key that Orbax saved, which does not record it;
            None takes JAX's default if it fits. A key of holdfast's knows its own.
    """

    impl: str | None = None


@dataclass
class NumpyRandomKeySave(CheckpointArgs):
    """Save the state of a NumPy generator: `np.random.get_state()`, or a `.state` dict."""

    item: Any


@dataclass
class NumpyRandomKeyRestore(CheckpointArgs):
    """Restore the state of a NumPy generator."""


class Composite(CheckpointArgs, Mapping[str, Any]):
    """Arguments, or results, by item name; immutable.

    Items are there as attributes, too. `a | b` has the items of both, the right one's where
    both have one; `a & names` those named.

    Raises:
        ValueError: A name starts with `__`.

    Examples:
        >>> import holdfast as hf
        >>> both = hf.args.Composite(state=1, config=2)
        >>> both.state, both["config"], both.get("absent"), len(both & {"state"})
        (1, 2, None, 1)
    """

    _items: Mapping[str, Any]

    def __init__(self, **items: Any) -> None:
        for name in items:
            if name.startswith("__"):
                raise ValueError(f"an item's name cannot start with '__', got {name!r}")
        object.__setattr__(self, "_items", MappingProxyType(dict(items)))

    def __getitem__(self, name: str) -> Any:
        if name not in self._items:
            there = ", ".join(map(repr, sorted(self._items))) or "none"
            raise KeyError(f"no item {name!r}; there are: {there}")
        return self._items[name]

    def __getattr__(self, name: str) -> Any:
        # An AttributeError, so that hasattr, copy and pickle work; a KeyError as in Orbax.
        if name == "_items" or name not in self._items:
            raise NoItemError(f"no item {name!r}")
        return self._items[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise ValueError(f"Composite is immutable: make a new one to set {name!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __and__(self, names: Iterable[str]) -> Composite:
        kept = set(names)
        return Composite(**{name: self._items[name] for name in self._items if name in kept})

    def __or__(self, other: Mapping[str, Any]) -> Composite:
        return Composite(**{**self._items, **other})

    def __reduce__(self) -> tuple[Any, ...]:
        return _composite, (type(self), dict(self._items))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._items.items())
        return f"{type(self).__name__}({shown})"


class CompositeItemMetadata(Composite):
    """What the items of a checkpoint say of themselves, by name; None for one that says nothing."""


def _composite(kind: type[Composite], items: Mapping[str, Any]) -> Composite:
    return kind(**items)
