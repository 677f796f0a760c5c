"""A training run's checkpoints: save steps, find the latest, resume from it."""

from holdfast_manager.described import DescribedCheckpoint, RootMetadata
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.verdicts import Verdict
from holdfast_manager.training.checkpointer import Checkpointer

__all__ = [
    "Checkpointer",
    "DescribedCheckpoint",
    "RootMetadata",
    "SaveResponse",
    "SaveResult",
    "Verdict",
]
