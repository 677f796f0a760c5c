"""Keeping Orbax's clean-up off what lies beside the checkpoints of a run.

Where it commits by a file, `cleanup_tmp_directories` deletes each folder of a run that lacks
the file, whatever it holds.
"""

from __future__ import annotations

from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.layout import ADVISORY_FILE

SHELTER_FILE = ADVISORY_FILE


async def shelter(backend: StorageBackend, folder: str) -> None:
    """Says so in a folder of ours that is to stay; nothing to do where Orbax renames."""
    if backend.orbax_commits_by_file:
        await backend.put(keys.join(folder, SHELTER_FILE), b"")
