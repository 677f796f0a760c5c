"""The v0-style checkpointers: one handler, one path at a time; in the foreground or behind it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Mapping
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
    refuse_several_processes,
    write_checkpoint,
)
from holdfast_checkpointer.functions import check_custom_metadata, metadata
from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.registry import get_registered_args_cls
from holdfast_checkpointer.handlers.standard import StandardCheckpointHandler
from holdfast_checkpointer.metadata import CheckpointMetadata


class Checkpointer:
    """Saves and restores with one handler.

    With a `CompositeCheckpointHandler` the checkpoint has a folder per item; with any other
    the item lies in the checkpoint itself.

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
        self._check_open()
        chosen = options.current(self._context)
        refuse_several_processes(chosen)
        backend, final = chosen.locate(directory)
        check_final(final)
        if custom_metadata is not None:
            check_custom_metadata(custom_metadata)
        args = _arguments(get_registered_args_cls(self._handler)[0], positional, keyword)
        contents = Contents(self._handler.stage_all(args, chosen), custom_metadata)

        async def write() -> None:
            await write_checkpoint(
                backend, final, contents, replace=force, atomicity=chosen.atomicity.mode
            )

        return AsyncResponse(
            write(),
            what=f"the save to {directory}",
            deadline=self._deadline(chosen),
            afterwards=chosen.asynchronous.post_finalization_callback,
        )

    def _deadline(self, context: options.Context) -> float:
        return context.asynchronous.timeout_secs

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
        backend, final = chosen.locate(directory)
        args = _arguments(get_registered_args_cls(self._handler)[1], positional, keyword)
        request = self._handler.prepare(args)

        async def body(stored: StoredCheckpoint) -> Any:
            return await self._handler.fetch_all(stored, request, chosen)

        return AsyncResponse(
            read_checkpoint(backend, final, body),
            what=f"the restore from {directory}",
            deadline=self._deadline(chosen),
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


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose saves return once the snapshot is taken.

    One save at a time: the next one, a restore, `wait_until_finished` and `close` wait for it
    and raise what it raised, once.

    Args:
        handler: What to save.
        timeout_secs: Deadline of one save or restore; None takes the context's.
        post_finalization_callback: Called after each commit, when the checkpoint is there to
            be loaded. Not called after a failure.
        context: Options; they win over an entered `Context`.

    Raises:
        ValueError: `timeout_secs` is not positive.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> with hf.AsyncCheckpointer(hf.StandardCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(
        ...         "memory://doc/later", args=hf.args.StandardSave({"w": np.ones(2)})
        ...     )
        ...     checkpointer.wait_until_finished()
        ...     checkpointer.restore("memory://doc/later")
        {'w': array([1., 1.])}
    """

    def __init__(
        self,
        handler: CheckpointHandler,
        timeout_secs: float | None = None,
        *,
        post_finalization_callback: Callable[[], Any] | None = None,
        context: options.Context | None = None,
    ) -> None:
        super().__init__(handler, context=context)
        if timeout_secs is not None and not timeout_secs > 0:
            raise ValueError(f"timeout_secs must be positive, got {timeout_secs!r}")
        self._timeout = timeout_secs
        self._callback = post_finalization_callback
        self._running: AsyncResponse[None] | None = None
        self._lock = threading.Lock()

    def save(
        self,
        directory: str | PathLike[str],
        *positional: Any,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **keyword: Any,
    ) -> None:
        """Saves in the background; see `Checkpointer.save`.

        Waits for the save before. What cannot be saved raises here; what storage says, an
        occupied destination included, raises at the next call that waits.
        """
        with self._lock:
            self._wait()
            self._running = self._start(directory, positional, keyword, force, custom_metadata)
            if self._callback is not None:
                callback = self._callback
                self._running.on_complete(lambda _: callback())

    def restore(self, directory: str | PathLike[str], *positional: Any, **keyword: Any) -> Any:
        """Waits for the save that runs, then restores; see `Checkpointer.restore`."""
        self.wait_until_finished()
        return super().restore(directory, *positional, **keyword)

    def wait_until_finished(self) -> None:
        """Waits for the save that runs, and raises what it raised."""
        with self._lock:
            self._wait()

    def check_for_errors(self) -> None:
        """Raises what the last save raised, once; does not wait."""
        with self._lock:
            if self._running is not None and self._running.done():
                self._wait()

    def cancel(self) -> None:
        """Stops the save that runs. Nothing of it stays, unless its commit had begun."""
        with self._lock:
            if self._running is not None:
                self._running.cancel()
                with contextlib.suppress(concurrent.futures.CancelledError):
                    self._wait()

    def close(self) -> None:
        """Waits for the save that runs, then closes the handler."""
        try:
            self.wait_until_finished()
        finally:
            super().close()

    def _wait(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def _deadline(self, context: options.Context) -> float:
        return self._timeout or super()._deadline(context)


class StandardCheckpointer(AsyncCheckpointer):
    """An `AsyncCheckpointer` for PyTrees of arrays and numbers.

    Args:
        context: Options; they win over an entered `Context`.

    Example:
        >>> import holdfast as hf, numpy as np
        >>> with hf.StandardCheckpointer() as checkpointer:
        ...     checkpointer.save("memory://doc/standard", {"w": np.ones(2)})
        ...     checkpointer.restore("memory://doc/standard")
        {'w': array([1., 1.])}
    """

    def __init__(self, *, context: options.Context | None = None) -> None:
        super().__init__(StandardCheckpointHandler(), context=context)


class PyTreeCheckpointer(Checkpointer):
    """A `Checkpointer` for any PyTree; its saves return when they are committed.

    Args:
        context: Options; they win over an entered `Context`.
    """

    def __init__(self, *, context: options.Context | None = None) -> None:
        super().__init__(PyTreeCheckpointHandler(), context=context)


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
