"""The engine: how a checkpoint is written, found and read, whatever is in it."""
