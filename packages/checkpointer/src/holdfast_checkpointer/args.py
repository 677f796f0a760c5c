"""Arguments of handlers: what to save, and what to restore into.

Named and shaped as Orbax's, so that migrating is one import line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
    """

    item: Any = None
    types: Sequence[type] = ()
    as_orbax: bool = False
    cast: str = "safe"
    fallback_sharding: Any = None


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
