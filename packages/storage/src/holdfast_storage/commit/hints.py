"""Hints of what is committed below a prefix, so that opening a run reads no record per step.

A hint is the empty object `<parent>/_committed/<leaf>`, written after the commit and removed
before the un-commit. It decides nothing: whoever acts on one checkpoint reads its record.
Where a request is cheap there are none, and nobody writes or lists them.
"""

from __future__ import annotations

from holdfast_storage import keys
from holdfast_storage.backend import StorageBackend

HINTS = "_committed"


def _hint(final: str) -> str:
    return keys.join(keys.parent(final), HINTS, keys.leaf(final))


async def list_hints(backend: StorageBackend, parent: str) -> frozenset[str]:
    """Names one level below `parent` that have a hint, committed or not. Writes nothing."""
    if not backend.hints.round_trips:
        return frozenset()
    listing = await backend.children(keys.join(parent, HINTS))
    return frozenset(keys.leaf(info.key) for info in listing.objects)


async def write_hint(backend: StorageBackend, final: str) -> None:
    """Says that `final` is committed. Without it the record is read, and nothing is lost."""
    if backend.hints.round_trips:
        await backend.put(_hint(final), b"")


async def remove_hint(backend: StorageBackend, final: str) -> None:
    """Comes before an un-commit. Succeeds if there is none."""
    if backend.hints.round_trips:
        await backend.delete(_hint(final))
