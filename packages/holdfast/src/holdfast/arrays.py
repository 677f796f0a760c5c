"""Descriptions of arrays."""

from holdfast_checkpointer.abstract import to_shape_dtype_struct

__all__ = ["to_shape_dtype_struct"]
