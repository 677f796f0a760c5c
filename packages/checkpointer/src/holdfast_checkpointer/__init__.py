"""Save and load JAX PyTrees on any storage."""
