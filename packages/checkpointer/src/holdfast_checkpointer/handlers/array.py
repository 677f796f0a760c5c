"""One array or number."""

from __future__ import annotations

import numbers
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.args import ArrayRestore, ArraySave, PyTreeRestore, PyTreeSave
from holdfast_checkpointer.handlers.base import StagedItem
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.options import Context
from holdfast_storage import ReadArea

_ACCEPTED = (jax.Array, np.ndarray, np.number, np.bool_, numbers.Number)


class ArrayCheckpointHandler(PyTreeCheckpointHandler):
    """Saves one array or number, as a PyTree with one leaf.

    Args:
        checkpoint_name: The leaf's name inside the item; `checkpoint` as in Orbax.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> with hf.Checkpointer(hf.ArrayCheckpointHandler()) as checkpointer:
        ...     checkpointer.save("memory://doc/array", args=hf.args.ArraySave(np.arange(3)))
        ...     checkpointer.restore("memory://doc/array")
        array([0, 1, 2])
    """

    save_args = ArraySave
    restore_args = ArrayRestore
    recorded_as = "orbax.checkpoint._src.handlers.array_checkpoint_handler.ArrayCheckpointHandler"

    def __init__(self, checkpoint_name: str | None = None) -> None:
        super().__init__()
        self._name = checkpoint_name or "checkpoint"

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Takes a snapshot.

        Raises:
            TypeError: It is neither an array nor a number.
        """
        if not isinstance(args.item, _ACCEPTED):
            raise TypeError(
                f"ArraySave takes an array or a number, got {type(args.item).__name__}; for a tree "
                "use PyTreeSave or StandardSave"
            )
        save_args = None if args.save_args is None else {self._name: args.save_args}
        return super().stage(PyTreeSave({self._name: args.item}, save_args), context)

    def prepare(self, args: Any) -> Any:
        """See `CheckpointHandler.prepare`."""
        target, restore_args = (
            None if given is None else {self._name: given}
            for given in (args.item, args.restore_args)
        )
        return super().prepare(
            PyTreeRestore(
                target, restore_args, cast=args.cast, fallback_sharding=args.fallback_sharding
            )
        )

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the array."""
        return (await super().fetch(area, request, context))[self._name]

    async def describe_item(self, area: ReadArea) -> Any:
        """See `describe`."""
        return await self.describe(area)

    async def describe(self, area: ReadArea) -> Any:
        """Shape, dtype and sharding of the array."""
        return (await super().describe(area))[self._name]
