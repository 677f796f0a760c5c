"""Real jobs of several JAX processes on this machine's CPU."""
