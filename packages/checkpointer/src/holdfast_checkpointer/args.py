"""Arguments of handlers: what to save, and what to restore into.

Named and shaped as Orbax's, so that migrating is one import line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any


class CheckpointArgs:
    """Base of all handler arguments."""


@dataclass(frozen=True)
class PyTreeSave(CheckpointArgs):
    """Save a PyTree with any leaves that holdfast knows."""

    item: Any


@dataclass(frozen=True)
class PyTreeRestore(CheckpointArgs):
    """Restore a PyTree.

    Attributes:
        item: The target: a PyTree of arrays, `jax.ShapeDtypeStruct`, scalars, types or
            `...`; None restores what was saved.
        types: Named tuple classes to use in a load without a target, besides those whose
            module is imported already.
        as_orbax: Without a target, give the containers that Orbax would.
        cast: "safe" allows a target dtype of the same kind, and float for int; "unsafe"
            any.
        fallback_sharding: For arrays without a target sharding whose saved one does not
            fit the devices here.
        select: Globs over the saved key paths, such as "params/**": only leaves that one of
            them matches are read, and the result is the tree of those. See "Load a part".
        rename: Regular expressions over whole saved key paths, each with its replacement, or
            a function from path to path. The target is matched after it.
    """

    item: Any = None
    types: Sequence[type] = ()
    as_orbax: bool = False
    cast: str = "safe"
    fallback_sharding: Any = None
    select: str | Sequence[str] | None = None
    rename: Mapping[str, str] | Callable[[str], str] | None = None


@dataclass(frozen=True)
class StandardSave(CheckpointArgs):
    """Save a PyTree of arrays and numbers."""

    item: Any


@dataclass(frozen=True)
class StandardRestore(PyTreeRestore):
    """Restore a PyTree of arrays and numbers; the fields are those of `PyTreeRestore`."""


@dataclass(frozen=True)
class JsonSave(CheckpointArgs):
    """Save a value that JSON can express."""

    item: Any


@dataclass(frozen=True)
class JsonRestore(CheckpointArgs):
    """Restore a JSON value. `item` is accepted for symmetry and not used."""

    item: Any = None


@dataclass(frozen=True)
class ArraySave(CheckpointArgs):
    """Save one array or number."""

    item: Any


@dataclass(frozen=True)
class ArrayRestore(CheckpointArgs):
    """Restore one array or number.

    Attributes:
        item: What to make: an array or `jax.ShapeDtypeStruct` (shape, dtype, sharding) or a
            Python number; None restores what was saved.
        cast: See `PyTreeRestore`.
        fallback_sharding: See `PyTreeRestore`.
    """

    item: Any = None
    cast: str = "safe"
    fallback_sharding: Any = None


@dataclass(frozen=True)
class ProtoSave(CheckpointArgs):
    """Save a protocol buffer message, as text."""

    item: Any


@dataclass(frozen=True)
class ProtoRestore(CheckpointArgs):
    """Restore a protocol buffer message.

    Attributes:
        item: The message's class.
    """

    item: Any = None


@dataclass(frozen=True)
class JaxRandomKeySave(CheckpointArgs):
    """Save a JAX PRNG key, typed or raw."""

    item: Any


@dataclass(frozen=True)
class JaxRandomKeyRestore(CheckpointArgs):
    """Restore a JAX PRNG key.

    Attributes:
        impl: The implementation of a typed key that Orbax saved, which does not record it;
            None takes JAX's default if it fits. A key of holdfast's knows its own.
    """

    impl: str | None = None


@dataclass(frozen=True)
class NumpyRandomKeySave(CheckpointArgs):
    """Save the state of a NumPy generator: `np.random.get_state()`, or a `.state` dict."""

    item: Any


@dataclass(frozen=True)
class NumpyRandomKeyRestore(CheckpointArgs):
    """Restore the state of a NumPy generator."""


class Composite(CheckpointArgs, Mapping[str, Any]):
    """Arguments, or results, by item name; immutable.

    Items are there as attributes, too. `a | b` has the items of both, the right one's where
    both have one; `a & names` those named.

    Raises:
        ValueError: A name starts with `__`.

    Example:
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
        # An AttributeError, so that hasattr, copy and pickle work; Orbax raises KeyError.
        if name == "_items" or name not in self._items:
            raise AttributeError(f"no item {name!r}")
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
        return _composite, (dict(self._items),)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._items.items())
        return f"Composite({shown})"


def _composite(items: Mapping[str, Any]) -> Composite:
    return Composite(**items)
