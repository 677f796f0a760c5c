"""A run directory of checkpoints: steps, policies, retention."""

from holdfast_manager import errors, training
from holdfast_manager.policies import preservation_policies, save_decision_policies

__all__ = ["errors", "preservation_policies", "save_decision_policies", "training"]
