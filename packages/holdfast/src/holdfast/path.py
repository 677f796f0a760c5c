"""Directories as handlers and objects that save themselves see them."""

from holdfast_checkpointer.handlers.v1.protocols import PathAwaitingCreation

__all__ = ["PathAwaitingCreation"]
