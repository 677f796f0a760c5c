"""The S3 storage backend of holdfast."""
