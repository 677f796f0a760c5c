"""Orbax's StandardCheckpointHandler: PyTrees of arrays and numbers."""

from __future__ import annotations

from typing import Any

import jax

from holdfast_checkpointer.args import StandardRestore, StandardSave
from holdfast_checkpointer.handlers.base import StagedItem
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.options import Context


class StandardCheckpointHandler(PyTreeCheckpointHandler):
    """Saves a PyTree of arrays and numbers; the v0 handler to use by default.

    Raises:
        ValueError: At the save, if the item is None or holds what cannot be saved.
    """

    save_args = StandardSave
    restore_args = StandardRestore
    recorded_as = (
        "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    )

    def stage(self, args: Any, context: Context) -> StagedItem:
        """See `PyTreeCheckpointHandler.stage`."""
        if args.item is None:
            raise ValueError("StandardSave needs a PyTree as its item, got None")
        if args.save_args is not None and any(
            getattr(one, "aggregate", False) for one in jax.tree.leaves(args.save_args)
        ):
            raise ValueError(
                "SaveArgs(aggregate=True) is refused by StandardSave, as by Orbax: small arrays "
                "share one file anyway"
            )
        return super().stage(args, context)
