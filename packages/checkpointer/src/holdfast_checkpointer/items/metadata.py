"""Leaves of a described tree: what an array is, without the array."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.sharding import sharding_from_json


@dataclass(frozen=True)
class NumpyMetadata:
    """A saved NumPy array. As a target it asks for a NumPy array.

    Attributes:
        shape: Of the array.
        dtype: Its dtype.
        chunk_shape: Of a stored chunk, if known.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ArrayMetadata:
    """A saved jax.Array or PRNG key. As a target it asks for one, sharded as it was if possible.

    Attributes:
        shape: Of the array.
        dtype: Its dtype; for PRNG keys the key dtype.
        sharding_metadata: The saved sharding as JSON.
        chunk_shape: Of a stored chunk, if known.
    """

    shape: tuple[int, ...]
    dtype: Any
    sharding_metadata: Mapping[str, Any] | None = None
    chunk_shape: tuple[int, ...] | None = None

    @property
    def sharding(self) -> jax.sharding.Sharding | None:
        """The saved sharding on this process's devices; None if it does not fit them."""
        return sharding_from_json(self.sharding_metadata, jax.devices())


@dataclass(frozen=True)
class ScalarMetadata:
    """A number that Orbax saved; what Python type it is, its array tells.

    Attributes:
        dtype: As stored.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...] = ()
