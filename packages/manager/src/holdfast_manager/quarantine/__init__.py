"""Steps that are there and not good: how they are told from others, and how that is kept."""

from holdfast_manager.quarantine.marks import QuarantineMarks
from holdfast_manager.quarantine.steps import Aside, QuarantinedStep

__all__ = ["Aside", "QuarantineMarks", "QuarantinedStep"]
