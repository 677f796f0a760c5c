"""Following a run that another job writes: its steps as they appear, each held while it is read."""

from holdfast_manager.following.functions import checkpoints_iterator, wait_for_new_checkpoint

__all__ = ["checkpoints_iterator", "wait_for_new_checkpoint"]
