"""What is read of a listed step when it is first asked for: its time, metrics and size."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer.engine.names import METRICS
from holdfast_manager.steps import CheckpointMetadata, StepReader
from holdfast_metadata import parse_json
from holdfast_metadata.orbax import ITEM_METADATA_FILE, STEP_METADATA_FILE, StepMetadata
from holdfast_storage import (
    CheckpointNotFoundError,
    ObjectNotFoundError,
    StorageBackend,
    StorageError,
    keys,
)
from holdfast_storage.commit import open_committed, open_plain, read_record
from holdfast_storage.loop import get_loop

_log = logging.getLogger(__name__)


def reader_of(backend: StorageBackend) -> StepReader:
    """Reads what is not known yet of the steps on one backend, from any thread but the loop's."""
    loop = get_loop()
    return StepReader(
        lambda entry: loop.run(time_of(backend, entry)),
        lambda entry: loop.run(metrics_of(backend, entry)),
        lambda entry: loop.run(size_of(backend, entry)),
    )


async def time_of(backend: StorageBackend, entry: CheckpointMetadata) -> int | None:
    """When a step was committed, by the writer's clock, in nanoseconds; None if it is gone."""
    if entry.ours:
        stored = await read_record(backend, entry.name)
        return stored.record.committed_ns if stored.record and stored.committed else None
    for name in (STEP_METADATA_FILE, ITEM_METADATA_FILE):
        try:
            info, data = await backend.read(keys.join(entry.name, name))
        except ObjectNotFoundError:
            continue
        said = None
        if name == STEP_METADATA_FILE:
            step = StepMetadata.from_bytes(data, source=f"{entry.path}/{name}")
            said = step.commit_timestamp_nsecs
        return said or int(info.modified * 1e9)
    return None


async def metrics_of(
    backend: StorageBackend, entry: CheckpointMetadata
) -> Mapping[str, Any] | None:
    """The metrics saved with a step; None if none were, or if it is gone."""
    try:
        area = (
            await open_committed(backend, entry.name, check_whole=False)
            if entry.ours
            else open_plain(backend, entry.name)
        )
        data = await area.child(METRICS).get(METRICS)
    except (ObjectNotFoundError, CheckpointNotFoundError):
        return None
    metrics: Mapping[str, Any] = parse_json(
        data, lenient=True, source=f"{area.label}/metrics/metrics"
    )
    return metrics


async def size_of(backend: StorageBackend, entry: CheckpointMetadata) -> int | None:
    """The bytes of all files of a step; None if that cannot be told."""
    try:
        if not entry.ours:
            return sum([info.size async for info in backend.walk(entry.name)])
        area = await open_committed(backend, entry.name, check_whole=False)
    except StorageError as error:
        _log.warning("the size of %s cannot be told: %s", entry.path, error)
        return None
    return sum(file.size for file in area.manifest.entries)
