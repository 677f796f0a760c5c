"""A training run's checkpoints: save steps, find the latest, resume from it."""

from holdfast_manager.policies import preservation_policies, save_decision_policies
from holdfast_manager.steps import CheckpointMetadata
from holdfast_manager.training import Checkpointer, SaveResponse, SaveResult

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "SaveResponse",
    "SaveResult",
    "preservation_policies",
    "save_decision_policies",
]
