"""The v0-style checkpointer: one handler, one path at a time."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import Any, Self

from holdfast_checkpointer import options
from holdfast_checkpointer.args import CheckpointArgs
from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.names import check_final
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    Item,
    refuse_several_processes,
    write_checkpoint,
)
from holdfast_checkpointer.functions import check_custom_metadata, metadata
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.metadata import CheckpointMetadata
from holdfast_storage import locate


class Checkpointer:
    """Saves and restores with one handler; the item lies in the checkpoint itself.

    Args:
        handler: What to save, for example `StandardCheckpointHandler()`.
        context: Options; they win over an entered `Context`.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        ...     checkpointer.save("memory://doc/v0", args=hf.args.StandardSave({"w": np.ones(2)}))
        ...     checkpointer.restore("memory://doc/v0")
        {'w': array([1., 1.])}
    """

    def __init__(
        self, handler: CheckpointHandler, *, context: options.Context | None = None
    ) -> None:
        if not isinstance(handler, CheckpointHandler):
            raise TypeError(f"a handler is a CheckpointHandler, got {type(handler).__name__}")
        self._handler = handler
        self._context = context
        self._closed = False

    @property
    def handler(self) -> CheckpointHandler:
        """The handler given at construction."""
        return self._handler

    def save(
        self,
        directory: str | PathLike[str],
        *positional: Any,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **keyword: Any,
    ) -> None:
        """Saves and returns when the checkpoint is committed and durable.

        Args:
            directory: A path or URL.
            *positional: The handler's save arguments, or what they are made from.
            force: Replace a checkpoint that is there; it stays until the new one is
                committed.
            custom_metadata: A JSON object to store beside it.
            **keyword: `args=` with the handler's save arguments, or their fields.

        Raises:
            FileExistsError: Something is there and was not touched.
            ValueError: Something cannot be saved; nothing was created.
        """
        self._check_open()
        refuse_several_processes()
        chosen = options.current(self._context)
        backend, final = locate(directory, chosen.storage)
        check_final(final)
        if custom_metadata is not None:
            check_custom_metadata(custom_metadata)
        args = _arguments(self._handler.save_args, positional, keyword)
        item = Item(self._handler.stage(args, chosen), self._handler.typestr())
        contents = Contents({"": item}, custom_metadata)
        AsyncResponse(
            write_checkpoint(backend, final, contents, replace=force),
            what=f"the save to {directory}",
            deadline=chosen.asynchronous.timeout_secs,
        ).result()

    def restore(self, directory: str | PathLike[str], *positional: Any, **keyword: Any) -> Any:
        """Restores what `save` stored, verified.

        Args:
            directory: A path or URL.
            *positional: The handler's restore arguments, or what they are made from.
            **keyword: `args=` with the handler's restore arguments, or their fields.

        Raises:
            FileNotFoundError: No checkpoint is committed there.
            ValueError: The target does not fit, or the bytes are damaged.
        """
        self._check_open()
        chosen = options.current(self._context)
        backend, final = locate(directory, chosen.storage)
        args = _arguments(self._handler.restore_args, positional, keyword)
        request = self._handler.prepare(args)

        async def body(stored: StoredCheckpoint) -> Any:
            return await self._handler.fetch(stored.item_area(""), request, chosen)

        return AsyncResponse(
            read_checkpoint(backend, final, body),
            what=f"the restore from {directory}",
            deadline=chosen.asynchronous.timeout_secs,
        ).result()

    def metadata(self, directory: str | PathLike[str]) -> CheckpointMetadata:
        """Describes a checkpoint without reading arrays."""
        self._check_open()
        return metadata(directory, context=options.current(self._context))

    def close(self) -> None:
        """Closes the handler; afterwards the checkpointer refuses to work."""
        if not self._closed:
            self._closed = True
            self._handler.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the checkpointer is closed")


def _arguments(
    expected: type[CheckpointArgs], positional: tuple[Any, ...], keyword: dict[str, Any]
) -> CheckpointArgs:
    """The handler's arguments, given as such or made from the caller's."""
    given = [
        value for value in (*positional, *keyword.values()) if isinstance(value, CheckpointArgs)
    ]
    if not given:
        return expected(*positional, **keyword)
    if len(positional) + len(keyword) > 1:
        raise TypeError(f"pass {expected.__name__} alone, or its fields, not both")
    if not isinstance(given[0], expected):
        raise TypeError(f"this handler takes {expected.__name__}, got {type(given[0]).__name__}")
    return given[0]
