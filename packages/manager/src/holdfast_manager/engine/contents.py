"""What a step holds besides the items that the caller names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from holdfast_checkpointer.engine.names import METRICS
from holdfast_checkpointer.engine.saving import Contents
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.json import JsonCheckpointHandler, StagedJson
from holdfast_metadata import constants_json, require_json


def for_a_step(stage: Callable[[], Contents], metrics: Any) -> Contents:
    """Stages the items and adds the metrics as one more.

    A loss that is NaN costs nobody a step: numbers in metrics need not be finite.

    Raises:
        ValueError: The metrics are no JSON object, or an item cannot be saved.
    """
    if metrics is not None:
        if not isinstance(metrics, Mapping):
            kind = type(metrics).__name__
            raise ValueError(f"metrics must be a JSON object (a dict), got {kind}")
        require_json(dict(metrics), what="metrics", finite=False)
        data = constants_json(dict(metrics))  # now: the caller may change them once this returns
    contents = stage()
    items = dict(contents.items)
    if metrics is not None:
        handler = JsonCheckpointHandler(filename=METRICS)
        items[METRICS] = Item(StagedJson(METRICS, data), handler.typestr())
    return Contents(items, contents.custom_metadata)
