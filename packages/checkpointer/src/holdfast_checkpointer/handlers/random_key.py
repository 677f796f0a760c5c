"""PRNG keys of JAX and generator states of NumPy, each beside a word on what it was."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from holdfast_checkpointer.args import (
    ArrayRestore,
    ArraySave,
    JaxRandomKeyRestore,
    JaxRandomKeySave,
    JsonRestore,
    JsonSave,
    NumpyRandomKeyRestore,
    NumpyRandomKeySave,
    PyTreeRestore,
    PyTreeSave,
)
from holdfast_checkpointer.arrays.options import StorageOptions
from holdfast_checkpointer.handlers.array import ArrayCheckpointHandler
from holdfast_checkpointer.handlers.base import CheckpointHandler, StagedItem
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler
from holdfast_checkpointer.handlers.parts import StagedParts
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.options import Context
from holdfast_metadata import MetadataError
from holdfast_storage import ReadArea

_MODULE = "orbax.checkpoint._src.handlers.random_key_checkpoint_handler"


class _RandomKeyHandler(CheckpointHandler):
    """Two parts: the item `<key_name>`, and JSON in `<key_name>_metadata`."""

    def __init__(self, key_name: str, inner: PyTreeCheckpointHandler) -> None:
        self._key_name = key_name
        self._about = f"{key_name}_metadata"
        self._inner = inner
        self._json = JsonCheckpointHandler()

    @abc.abstractmethod
    def _take(self, item: Any) -> tuple[Any, dict[str, Any]]:
        """The inner item's arguments, and what to note about it."""

    @abc.abstractmethod
    def _give(self, item: Any, about: dict[str, Any], request: Any) -> Any:
        """What was saved, from its parts."""

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Takes a snapshot.

        Raises:
            TypeError: It is no such key or state.
        """
        inner, about = self._take(args.item)
        context = _exact(context)
        return StagedParts(
            {
                self._key_name: self._inner.stage(inner, context),
                self._about: self._json.stage(JsonSave(about), context),
            }
        )

    @abc.abstractmethod
    def _inner_request(self) -> Any:
        """Prepares the inner restore."""

    def prepare(self, args: Any) -> Any:
        """See `CheckpointHandler.prepare`."""
        return self._inner_request(), args

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads both parts.

        Raises:
            MetadataError: What was noted about the key is not what a key has.
        """
        inner, args = request
        about = await self._json.fetch(area.child(self._about), JsonRestore(), context)
        if not isinstance(about, dict):
            raise MetadataError(f"{area.label}/{self._about} is no JSON object but {about!r}")
        item = await self._inner.fetch(area.child(self._key_name), inner, context)
        return self._give(item, about, args)

    async def describe(self, area: ReadArea) -> Any:
        """Shapes and dtypes of what is stored."""
        return await self._inner.describe(area.child(self._key_name))


def _exact(context: Context) -> Context:
    """The context without a dtype to store arrays in: a state of a generator is no number."""
    saving = dataclasses.replace(
        context.array.saving,
        storage_options=StorageOptions(),
        scoped_storage_options_creator=None,
    )
    return context.replace(array=dataclasses.replace(context.array, saving=saving))


class JaxRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves a JAX PRNG key, typed or raw, with its implementation.

    Args:
        key_name: Folder of the key inside the item.

    Examples:
        >>> import holdfast as hf, jax
        >>> with hf.Checkpointer(hf.JaxRandomKeyCheckpointHandler()) as checkpointer:
        ...     save = hf.args.JaxRandomKeySave(jax.random.key(7, impl="rbg"))
        ...     checkpointer.save("memory://doc/key", args=save)
        ...     str(jax.random.key_impl(checkpointer.restore("memory://doc/key")))
        'rbg'
    """

    save_args = JaxRandomKeySave
    restore_args = JaxRandomKeyRestore
    recorded_as = f"{_MODULE}.JaxRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        super().__init__(key_name or "jax_random_key", ArrayCheckpointHandler())

    def _take(self, item: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(item, jax.Array):
            raise TypeError(
                f"JaxRandomKeySave takes a key made by jax.random, got {type(item).__name__}"
            )
        if not jnp.issubdtype(item.dtype, jax.dtypes.prng_key):
            return ArraySave(item), {"typed": False}
        about = {"typed": True, "impl": str(jax.random.key_impl(item))}
        return ArraySave(jax.random.key_data(item)), about

    def _inner_request(self) -> Any:
        return self._inner.prepare(ArrayRestore())

    def _give(self, item: Any, about: dict[str, Any], request: Any) -> Any:
        if not about.get("typed"):
            return item
        impl = about.get("impl") or request.impl
        try:
            return jax.random.wrap_key_data(item, impl=impl)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"a typed key of shape {np.shape(item)} does not fit the implementation "
                f"{impl or 'that is the default here'}: Orbax does not record which it was; "
                "say so with JaxRandomKeyRestore(impl='rbg'), or whichever it was"
            ) from error


class NumpyRandomKeyCheckpointHandler(_RandomKeyHandler):
    """Saves the state of a NumPy generator: `np.random.get_state()` or `.bit_generator.state`.

    Args:
        key_name: Folder of the state inside the item.
    """

    save_args = NumpyRandomKeySave
    restore_args = NumpyRandomKeyRestore
    recorded_as = f"{_MODULE}.NumpyRandomKeyCheckpointHandler"

    def __init__(self, key_name: str | None = None) -> None:
        super().__init__(key_name or "np_random_key", PyTreeCheckpointHandler())

    def _take(self, item: Any) -> tuple[Any, dict[str, Any]]:
        if not isinstance(item, tuple | dict):
            raise TypeError(
                "NumpyRandomKeySave takes the state of a generator, a tuple or a dict, "
                f"got {type(item).__name__}"
            )
        return PyTreeSave(item), {"legacy": isinstance(item, tuple)}

    def _inner_request(self) -> Any:
        return self._inner.prepare(PyTreeRestore())

    def _give(self, item: Any, about: dict[str, Any], request: Any) -> Any:
        return tuple(item) if about.get("legacy") else item
