"""The engine of a run: which steps are known, how one is saved, and how one is collected."""
