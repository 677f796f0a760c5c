"""The v0-style checkpointer: one handler, one path at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from os import PathLike
from types import TracebackType
from typing import Any, ClassVar, Self

from holdfast_checkpointer import options
from holdfast_checkpointer.checkpointer_options import instance_options
from holdfast_checkpointer.engine.calling import call_of
from holdfast_checkpointer.engine.desk import attended
from holdfast_checkpointer.engine.layout import StoredCheckpoint, read_checkpoint
from holdfast_checkpointer.engine.names import check_final
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import (
    Contents,
    start_save,
    write_checkpoint,
)
from holdfast_checkpointer.functions import check_custom_metadata
from holdfast_checkpointer.handlers.foreign.handler import driven
from holdfast_checkpointer.metadata import StepMetadata, describe_step

_log = logging.getLogger(__name__)


class Checkpointer:
    """Saves and restores with one handler.

    With a `CompositeCheckpointHandler` the checkpoint has a folder per item; with any other
    the item lies in the checkpoint itself.

    Args:
        handler: What to save, for example `StandardCheckpointHandler()`; or a handler written
            against Orbax's protocol, with `save` and `restore` on a directory.
        multiprocessing_options: See `options.MultiprocessingOptions`.
        file_options: See `options.FileOptions`.
        atomicity_options: See `options.AtomicityOptions`.
        checkpoint_metadata_store: Only None: the checkpoint's document is part of its commit.
        temporary_path_class: Only None: the storage decides how a checkpoint becomes visible.
        context: Further options; they win over an entered `Context`, and the options above
            win over them.

    Raises:
        TypeError: It is no handler, and the message says what it lacks; or an option is not
            of its class.
        UnsupportedOptionError: An option has no meaning here.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        ...     checkpointer.save("memory://doc/v0", args=hf.args.StandardSave({"w": np.ones(2)}))
        ...     checkpointer.restore("memory://doc/v0")
        {'w': array([1., 1.])}
    """

    _prefers_async_save: ClassVar[bool] = False

    def __init__(
        self,
        handler: Any,
        *,
        multiprocessing_options: options.MultiprocessingOptions | None = None,
        file_options: options.FileOptions | None = None,
        atomicity_options: options.AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        context: options.Context | None = None,
    ) -> None:
        self._driven = driven(handler, asynchronous=self._prefers_async_save)
        self._groups = instance_options(
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
        )
        self._handler = handler
        self._context = context
        self._closed = False

    @property
    def handler(self) -> Any:
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
            force: Replace a checkpoint that is there, whoever writes to the run in which it
                is; it stays until the new one is committed.
            custom_metadata: A JSON object to store beside it.
            **keyword: `args=` with the handler's save arguments, or their fields; the item also
                as `state=`.

        Raises:
            FileExistsError: Something is there and was not touched; a `ValueError` as well.
            ValueError: Something cannot be saved; nothing was created.
            TypeError: The arguments are not the handler's; nothing was created.
            TimeoutError: It took longer than the options allow; nothing is visible.
        """
        self._start(directory, positional, keyword, force, custom_metadata).result()

    def _start(
        self,
        directory: str | PathLike[str],
        positional: tuple[Any, ...],
        keyword: dict[str, Any],
        force: bool,
        custom_metadata: Mapping[str, Any] | None,
    ) -> AsyncResponse[None]:
        """Validates and takes the snapshot, then writes in the background."""
        with call_of(self._options) as call:
            self._make_ready(directory, force=force)
            chosen = self._options()
            backend, final = chosen.locate(directory)
            check_final(final)
            if custom_metadata is not None:
                check_custom_metadata(custom_metadata)
            args = self._driven.arguments(positional, keyword, save=True)
            contents = Contents(self._driven.stage_all(args, chosen), custom_metadata)

        async def write() -> None:
            await write_checkpoint(
                backend, final, contents, replace=force, force=force, context=chosen, call=call
            )

        return start_save(
            contents,
            write(),
            what=f"the save to {directory}",
            deadline=chosen.asynchronous.timeout_secs,
            afterwards=chosen.asynchronous.post_finalization_callback,
        )

    def _make_ready(self, directory: str | PathLike[str], *, force: bool) -> None:
        """What comes before a save."""
        self._check_open()

    def _options(self) -> options.Context:
        """What holds for a call that begins now."""
        return options.Context(options.current(self._context), **self._groups)

    def restore(self, directory: str | PathLike[str], *positional: Any, **keyword: Any) -> Any:
        """Restores what `save` stored, verified.

        Args:
            directory: A path or URL.
            *positional: The handler's restore arguments, or what they are made from.
            **keyword: `args=` with the handler's restore arguments, or their fields.

        Raises:
            FileNotFoundError: No checkpoint is committed there; where only an unfinished one
                is, a `ValueError` as well.
            ValueError: The target does not fit, or the bytes are damaged.
            KeyError: The checkpoint has no such item.
        """
        self._check_open()
        chosen = self._options()
        backend, final = chosen.locate(directory)
        args = self._driven.arguments(positional, keyword, save=False)
        request = self._driven.prepare(args)

        async def body(stored: StoredCheckpoint) -> Any:
            return await self._driven.fetch_all(stored, request, chosen)

        return attended(
            read_checkpoint(backend, final, body),
            what=f"the restore from {directory}",
            deadline=chosen.asynchronous.timeout_secs,
        )

    def metadata(self, directory: str | PathLike[str]) -> StepMetadata:
        """Describes a checkpoint without reading arrays and without touching devices.

        Raises:
            FileNotFoundError: No checkpoint is committed there.
            ValueError: The handler is a composite one, and the checkpoint has no items.
        """
        self._check_open()
        chosen = self._options()
        backend, final = chosen.locate(directory)

        async def body(stored: StoredCheckpoint) -> StepMetadata:
            return await describe_step(stored, self._driven)

        return attended(
            read_checkpoint(backend, final, body),
            what=f"the description of {directory}",
            deadline=chosen.asynchronous.timeout_secs,
        )

    def close(self) -> None:
        """Closes the handler; afterwards the checkpointer refuses to work."""
        if not self._closed:
            self._closed = True
            self._driven.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as other:  # noqa: BLE001 - never in place of the error that is under way
            error.add_note(f"a save failed as well: {type(other).__name__}: {other}")
            _log.exception("a save failed as well")

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the checkpointer is closed")
