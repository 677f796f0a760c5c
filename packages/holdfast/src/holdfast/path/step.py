"""Formats of the names of steps, for `training.Checkpointer(step_name_format=...)`."""

from holdfast_manager.step_names import (
    NameFormat,
    composite_name_format,
    standard_name_format,
)

__all__ = ["NameFormat", "composite_name_format", "standard_name_format"]
