"""A training run's checkpoints: save steps, find the latest, resume from it."""

from holdfast_manager import errors
from holdfast_manager.described import DescribedCheckpoint, RootMetadata
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.verdicts import Verdict
from holdfast_manager.policies import preservation_policies, save_decision_policies
from holdfast_manager.steps import CheckpointMetadata
from holdfast_manager.training.checkpointer import Checkpointer

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "DescribedCheckpoint",
    "RootMetadata",
    "SaveResponse",
    "SaveResult",
    "Verdict",
    "errors",
    "preservation_policies",
    "save_decision_policies",
]
