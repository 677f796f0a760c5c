"""The S3 storage backend of holdfast: AWS and stores that speak its protocol."""

from holdfast_s3.backend import S3Backend, open_backend
from holdfast_s3.settings import S3Settings

__all__ = ["S3Backend", "S3Settings", "open_backend"]
