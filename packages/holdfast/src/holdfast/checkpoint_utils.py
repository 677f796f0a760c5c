"""Helpers with Orbax's names."""

from holdfast_checkpointer.restore_args import construct_restore_args
from holdfast_manager.following import checkpoints_iterator, wait_for_new_checkpoint

__all__ = ["checkpoints_iterator", "construct_restore_args", "wait_for_new_checkpoint"]
