"""Checkpoints of several items as Orbax wrote them before it marked them: recognised by the items.

They are read, and otherwise foreign: never replaced, deleted or collected.
"""

from __future__ import annotations

import asyncio
import re

from holdfast_checkpointer.engine.names import ORBAX_COMMIT, ORBAX_TEMPORARY
from holdfast_metadata.orbax import ITEM_METADATA_FILE, STEP_METADATA_FILE
from holdfast_storage import StorageBackend, keys

_MOST_ITEMS = 100  # each costs a listing, and few checkpoints have ten
_LIKE_A_STEP = re.compile(r"\d+$")


async def holds_unmarked(backend: StorageBackend, final: str) -> bool:
    """Whether the folders in a folder are items, at least one of them a PyTree.

    A run of checkpoints looks the same but for its names: with a number at the end of one that
    would be the PyTree it is taken for a run, so that no step is loaded as an item.
    """
    there = await backend.children(final)
    if backend.orbax_commits_by_file and ORBAX_COMMIT not in map(
        keys.leaf, (info.key for info in there.objects)
    ):
        return False
    if len(there.prefixes) > _MOST_ITEMS:
        return False
    if any(ORBAX_TEMPORARY in keys.leaf(prefix) for prefix in (final, *there.prefixes)):
        return False
    inside = await asyncio.gather(*(backend.children(prefix) for prefix in there.prefixes))
    trees = []
    for prefix, listing in zip(there.prefixes, inside, strict=True):
        files = {keys.leaf(info.key) for info in listing.objects}
        if STEP_METADATA_FILE in files:
            return False
        if ITEM_METADATA_FILE in files:
            trees.append(keys.leaf(prefix))
    return bool(trees) and not any(_LIKE_A_STEP.search(name) for name in trees)
