"""One protocol buffer message as one text file."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from holdfast_checkpointer.args import ProtoRestore, ProtoSave
from holdfast_checkpointer.handlers.base import CheckpointHandler, ItemRecord, StagedItem
from holdfast_checkpointer.handlers.constructor_options import check_processes
from holdfast_checkpointer.options import Context, MultiprocessingOptions
from holdfast_metadata import digest_bytes
from holdfast_storage import DamagedCheckpointError, ReadArea, WriteArea


class ProtoCheckpointHandler(CheckpointHandler):
    """Saves a protocol buffer message in text format.

    Args:
        filename: The file's name inside the item; `proto.pbtxt` as in Orbax.
        multiprocessing_options: Which processes take part; see `options.MultiprocessingOptions`.

    Raises:
        ImportError: At the save or restore, if protobuf is not installed.
    """

    save_args = ProtoSave
    restore_args = ProtoRestore
    recorded_as = "orbax.checkpoint._src.handlers.proto_checkpoint_handler.ProtoCheckpointHandler"

    def __init__(
        self,
        filename: str = "proto.pbtxt",
        *,
        multiprocessing_options: MultiprocessingOptions | None = None,
    ) -> None:
        check_processes(multiprocessing_options)
        self.taking_part = multiprocessing_options
        self._filename = filename

    def stage(self, args: Any, context: Context) -> StagedItem:
        """Encodes the message.

        Raises:
            TypeError: It is no message.
        """
        message, text = _protobuf()
        if not isinstance(args.item, message.Message):
            raise TypeError(f"ProtoSave takes a protobuf message, got {type(args.item).__name__}")
        return _StagedFile(self._filename, text.MessageToString(args.item).encode())

    def prepare(self, args: Any) -> Any:
        """Checks the class.

        Raises:
            ValueError: None is given: text format does not say which message it is.
        """
        message, _ = _protobuf()
        if not (isinstance(args.item, type) and issubclass(args.item, message.Message)):
            raise ValueError(
                f"ProtoRestore needs the message's class as its item, got {args.item!r}"
            )
        return args

    async def fetch(self, area: ReadArea, request: Any, context: Context) -> Any:
        """Reads the message.

        Raises:
            DamagedCheckpointError: The text is no such message.
        """
        _, text = _protobuf()
        data = await area.get(self._filename)
        try:
            return text.Parse(data.decode(), request.item())
        except (text.ParseError, UnicodeDecodeError) as error:
            raise DamagedCheckpointError(
                f"{self._filename!r} is no {request.item.DESCRIPTOR.full_name}: {error}",
                file=self._filename,
                root=area.label,
            ) from error

    async def describe(self, area: ReadArea) -> Any:
        """A message describes itself."""
        return None


class _StagedFile(StagedItem):
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
        await area.put(self._filename, self._data)
        return ItemRecord()

    async def finish(self, area: WriteArea, records: Sequence[ItemRecord]) -> None:
        """Nothing describes the file but itself."""


def _protobuf() -> tuple[Any, Any]:
    """The modules `message` and `text_format`, imported when first needed."""
    try:
        return (
            importlib.import_module("google.protobuf.message"),
            importlib.import_module("google.protobuf.text_format"),
        )
    except ImportError as error:
        raise ImportError("protocol buffers need another package: pip install protobuf") from error
