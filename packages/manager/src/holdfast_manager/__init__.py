"""A run directory of checkpoints: steps, policies, retention."""
