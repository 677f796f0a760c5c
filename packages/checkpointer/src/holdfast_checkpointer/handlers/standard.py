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

    Text and bytes, a bare array or number, and an empty tree are for `PyTreeCheckpointHandler`,
    and for `ArrayCheckpointHandler`.

    Raises:
        ValueError: At the save, if the item is no such tree; nothing was written.
    """

    save_args = StandardSave
    restore_args = StandardRestore
    recorded_as = (
        "orbax.checkpoint._src.handlers.standard_checkpoint_handler.StandardCheckpointHandler"
    )

    def stage(self, args: Any, context: Context) -> StagedItem:
        """See `PyTreeCheckpointHandler.stage`."""
        _refuse_what_is_no_tree(args.item)
        if args.save_args is not None and any(
            getattr(one, "aggregate", False) for one in jax.tree.leaves(args.save_args)
        ):
            raise ValueError(
                "SaveArgs(aggregate=True) is refused by StandardSave, as by Orbax: small arrays "
                "share one file anyway"
            )
        return super().stage(args, context)


def _refuse_what_is_no_tree(item: Any) -> None:
    tree: Any  # JAX's stubs say nothing of it
    leaves, tree = jax.tree_util.tree_flatten_with_path(item)
    if tree.num_nodes == tree.num_leaves == 1:
        raise ValueError(
            f"StandardSave takes a tree of arrays and numbers, got {type(item).__name__}: a single "
            "array or number is for ArraySave, anything else for PyTreeSave"
        )
    if tree.num_nodes == 1:
        what = "None" if item is None else f"an empty {type(item).__name__}"
        raise ValueError(f"StandardSave needs a PyTree as its item, got {what}")
    for path, leaf in leaves:
        if isinstance(leaf, str | bytes):
            raise ValueError(
                f"{jax.tree_util.keystr(path)} is {type(leaf).__name__}: StandardSave takes arrays "
                "and numbers; PyTreeSave takes text and bytes as well"
            )
