"""The Google Cloud Storage backend of holdfast."""
