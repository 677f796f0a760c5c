"""A training run's checkpoints: save steps, find the latest, resume from it."""

from holdfast_manager.described import DescribedCheckpoint, RootMetadata
from holdfast_manager.engine.deletion import Deletion, Trash
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.trash import TrashedStep
from holdfast_manager.engine.verdicts import Verdict
from holdfast_manager.training.checkpointer import Checkpointer
from holdfast_storage.commit import SweepReport

__all__ = [
    "Checkpointer",
    "Deletion",
    "DescribedCheckpoint",
    "RootMetadata",
    "SaveResponse",
    "SaveResult",
    "SweepReport",
    "Trash",
    "TrashedStep",
    "Verdict",
]
