"""One JSON value as one file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from holdfast_checkpointer.args import JsonRestore, JsonSave
from holdfast_checkpointer.handlers.base import CheckpointHandler, ItemRecord, StagedItem
from holdfast_checkpointer.options import Context
from holdfast_metadata import canonical_json, parse_json, require_json
from holdfast_storage import ReadArea, WriteArea


class JsonCheckpointHandler(CheckpointHandler):
    """Saves a value that JSON can express (metrics, a config) as one file.

    Args:
        filename: The file's name inside the item; `metadata` as in Orbax.
    """

    save_args = JsonSave
    restore_args = JsonRestore
    recorded_as = "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler"

    def __init__(self, filename: str = "metadata") -> None:
        self._filename = filename

    def stage(self, args: JsonSave, context: Context) -> StagedItem:
        """Encodes the value.

        Raises:
            MetadataError: It holds something JSON cannot express; the message says where.
        """
        require_json(args.item, what="the JSON item")
        return _StagedJson(self._filename, canonical_json(args.item))

    async def fetch(self, area: ReadArea, request: JsonRestore, context: Context) -> Any:
        """Reads the value back."""
        return parse_json(await area.get(self._filename), source=f"{area.label}/{self._filename}")

    async def describe(self, area: ReadArea) -> Any:
        """A JSON item describes itself."""
        return None


class _StagedJson(StagedItem):
    def __init__(self, filename: str, data: bytes) -> None:
        self._filename = filename
        self._data = data

    async def write(self, area: WriteArea) -> ItemRecord:
        await area.put(self._filename, self._data)
        return ItemRecord()

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Nothing describes a JSON file but itself."""
