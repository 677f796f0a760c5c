"""A run's folder: which steps are committed in it, what is known of them, how one goes."""

from holdfast_manager.run_directory.directory import RunDirectory

__all__ = ["RunDirectory"]
