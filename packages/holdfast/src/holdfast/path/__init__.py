"""Directories as handlers and objects that save themselves see them, and names of steps."""

from holdfast.path import step
from holdfast_checkpointer.handlers.v1.protocols import PathAwaitingCreation

__all__ = ["PathAwaitingCreation", "step"]
