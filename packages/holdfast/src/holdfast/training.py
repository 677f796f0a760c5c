"""A training run's checkpoints: save steps, find the latest, resume from it."""

from holdfast_manager import errors
from holdfast_manager.described import DescribedCheckpoint, RootMetadata
from holdfast_manager.engine.deletion import Deletion, Trash
from holdfast_manager.engine.fallback import LoadReport, LoadResponse
from holdfast_manager.engine.results import SaveResponse, SaveResult
from holdfast_manager.engine.termination import Termination
from holdfast_manager.engine.trash import TrashedStep
from holdfast_manager.engine.verdicts import Verdict
from holdfast_manager.policies import preservation_policies, save_decision_policies
from holdfast_manager.quarantine import QuarantinedStep
from holdfast_manager.steps import CheckpointMetadata
from holdfast_manager.training.checkpointer import Checkpointer
from holdfast_manager.training.termination import save_on_termination
from holdfast_storage.commit import SweepReport

__all__ = [
    "CheckpointMetadata",
    "Checkpointer",
    "Deletion",
    "DescribedCheckpoint",
    "LoadReport",
    "LoadResponse",
    "QuarantinedStep",
    "RootMetadata",
    "SaveResponse",
    "SaveResult",
    "SweepReport",
    "Termination",
    "Trash",
    "TrashedStep",
    "Verdict",
    "errors",
    "preservation_policies",
    "save_decision_policies",
    "save_on_termination",
]
