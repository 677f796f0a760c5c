"""The local-disk storage backend of holdfast."""
