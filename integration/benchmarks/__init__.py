"""holdfast, Orbax and the raw disk, measured side by side in one run."""
