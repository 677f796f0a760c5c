"""The Google Cloud Storage backend of holdfast, for flat and hierarchical buckets."""

from holdfast_gcs.backend import GcsBackend, open_backend
from holdfast_gcs.settings import GcsSettings

__all__ = ["GcsBackend", "GcsSettings", "open_backend"]
