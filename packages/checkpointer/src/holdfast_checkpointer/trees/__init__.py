"""PyTrees: taking them apart, describing them, comparing them, putting them together."""
