"""One JSON value as one file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast_checkpointer.args import JsonRestore, JsonSave
from holdfast_checkpointer.handlers.base import CheckpointHandler, ItemRecord, StagedItem
from holdfast_checkpointer.handlers.constructor_options import check_processes
from holdfast_checkpointer.options import Context, MultiprocessingOptions
from holdfast_metadata import canonical_json, digest_bytes, parse_json, require_json
from holdfast_storage import ReadArea, WriteArea

# Of v0 handlers, of v1 handlers, and of metrics.
_NAMES = ("metadata", "data.json", "metrics")


class JsonCheckpointHandler(CheckpointHandler):
    """Saves a value that JSON can express (metrics, a config) as one file.

    Args:
        filename: The file's name inside the item; None writes `metadata` as Orbax does, and
            reads whichever of the names there is that Orbax has used.
        multiprocessing_options: Which processes take part; see `options.MultiprocessingOptions`.
    """

    save_args = JsonSave
    restore_args = JsonRestore
    recorded_as = "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler"

    def __init__(
        self,
        filename: str | None = None,
        *,
        multiprocessing_options: MultiprocessingOptions | None = None,
    ) -> None:
        check_processes(multiprocessing_options)
        self.taking_part = multiprocessing_options
        self._filename = filename or _NAMES[0]
        self._names = (filename,) if filename else _NAMES

    def stage(self, args: JsonSave, context: Context) -> StagedItem:
        """Encodes the value.

        Raises:
            NotJsonError: It holds something JSON cannot express; the message says where.
        """
        require_json(args.item, what="the JSON item")
        return StagedJson(self._filename, canonical_json(args.item))

    async def fetch(self, area: ReadArea, request: JsonRestore, context: Context) -> Any:
        """Reads the value back. Orbax writes NaN and infinite numbers, too; they are taken.

        Raises:
            ObjectNotFoundError: The file is not there.
        """
        there = await area.names()
        name = next((name for name in self._names if name in there), self._filename)
        return parse_json(await area.get(name), source=f"{area.label}/{name}", lenient=True)

    async def describe(self, area: ReadArea) -> Any:
        """A JSON item describes itself."""
        return None


class StagedJson(StagedItem):
    """A document that is ready to be written.

    Args:
        filename: Its name inside the item.
        data: Its bytes.
    """

    @property
    def complete(self) -> bool:
        """See `StagedItem.complete`."""
        return True

    def __init__(self, filename: str, data: bytes) -> None:
        self._filename = filename
        self._data = data

    def fingerprint(self) -> Mapping[str, str]:
        """The primary writes the file, so all must have the same."""
        return {f"/{self._filename}": json.dumps({"bytes": [digest_bytes(self._data)]})}

    async def write(self, area: WriteArea) -> ItemRecord:
        """Writes the one file."""
        await area.put(self._filename, self._data)
        return ItemRecord()

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Nothing describes a JSON file but itself."""
