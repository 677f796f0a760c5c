"""Helpers with Orbax's names."""

from holdfast_checkpointer.restore_args import construct_restore_args

__all__ = ["construct_restore_args"]
