"""Checkpointing for JAX on local disk, GCS and S3: no crash loses a step."""
