"""The local-disk storage backend of holdfast."""

from holdfast_local.backend import LocalBackend, open_backend

__all__ = ["LocalBackend", "open_backend"]
