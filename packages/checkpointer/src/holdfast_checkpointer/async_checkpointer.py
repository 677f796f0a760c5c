"""The v0-style checkpointer whose saves run in the background."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.checkpointer import Checkpointer
from holdfast_checkpointer.checkpointer_options import instance_options
from holdfast_checkpointer.engine.response import AsyncResponse
from holdfast_checkpointer.engine.saving import refuse_if_taken
from holdfast_storage.loop import get_loop


class AsyncCheckpointer(Checkpointer):
    """A `Checkpointer` whose saves return once the snapshot is taken.

    One save at a time: the next one, a restore, `wait_until_finished` and `close` wait for it
    and raise what it raised, once. Methods may be called from any thread. An interpreter that
    exits waits for the save, and prints an error that nobody was told.

    Args:
        handler: What to save.
        timeout_secs: Deadline of one save or restore, in seconds; None takes that of
            `async_options`.
        async_options: See `options.AsyncOptions`; a callback after each commit is there.
        multiprocessing_options: See `options.MultiprocessingOptions`.
        file_options: See `options.FileOptions`.
        atomicity_options: See `options.AtomicityOptions`.
        checkpoint_metadata_store: Only None: the checkpoint's document is part of its commit.
        temporary_path_class: Only None: the storage decides how a checkpoint becomes visible.
        context: Further options; they win over an entered `Context`, and the options above
            win over them.

    Raises:
        ValueError: `timeout_secs` is not positive.
        TypeError: The handler or an option is not of its class.
        UnsupportedOptionError: An option has no meaning here.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> with hf.AsyncCheckpointer(hf.StandardCheckpointHandler()) as checkpointer:
        ...     checkpointer.save(
        ...         "memory://doc/later", args=hf.args.StandardSave({"w": np.ones(2)})
        ...     )
        ...     checkpointer.wait_until_finished()
        ...     checkpointer.restore("memory://doc/later")
        {'w': array([1., 1.])}
    """

    _prefers_async_save = True

    def __init__(
        self,
        handler: Any,
        timeout_secs: float | None = None,
        *,
        async_options: options.AsyncOptions | None = None,
        multiprocessing_options: options.MultiprocessingOptions | None = None,
        file_options: options.FileOptions | None = None,
        atomicity_options: options.AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        context: options.Context | None = None,
    ) -> None:
        super().__init__(handler, context=context)
        self._groups = instance_options(
            timeout_secs=timeout_secs,
            async_options=async_options,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
        )
        self._saving: AsyncResponse[None] | None = None
        self._turn = threading.Lock()  # one save begins at a time

    @property
    def timeout_secs(self) -> float | None:
        """The deadline that it was made with, in seconds; None if it takes the context's."""
        given = self._groups.get("asynchronous")
        return None if given is None else float(given.timeout_secs)

    def save(
        self,
        directory: str | PathLike[str],
        *positional: Any,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
        **keyword: Any,
    ) -> None:
        """Saves in the background; see `Checkpointer.save`.

        Waits for the save before, and raises what that raised: this one was not begun then.
        What cannot be saved, and a destination that is taken, raise here; what the storage
        says later raises at the next call that waits.
        """
        with self._turn:
            self._saving = self._start(directory, positional, keyword, force, custom_metadata)

    def _make_ready(self, directory: str | PathLike[str], *, force: bool) -> None:
        """Waits for the save before, and makes one request.

        So a destination that is taken is told at once and not in the background.
        """
        try:
            self._wait()
        except BaseException as error:
            error.add_note(f"raised by the save before; the one to {directory} was not begun")
            raise
        super()._make_ready(directory, force=force)
        chosen = self._options()
        if not force and not chosen.file.skip_sync_file_validations:
            backend, final = chosen.locate(directory)
            get_loop().run(refuse_if_taken(backend, final, replace=force))

    def restore(self, directory: str | PathLike[str], *positional: Any, **keyword: Any) -> Any:
        """Waits for the save that runs, then restores; see `Checkpointer.restore`."""
        self.wait_until_finished()
        return super().restore(directory, *positional, **keyword)

    def wait_until_finished(self) -> None:
        """Waits for the save that runs, and raises what it raised, once."""
        self._wait()

    def check_for_errors(self) -> None:
        """Raises what the last save raised, once; does not wait."""
        saving = self._saving
        if saving is not None and saving.done():
            self._tell(saving)

    def cancel(self) -> None:
        """Stops the save that runs, and waits until it has stopped.

        Nothing of it stays, unless its commit had begun: then it is carried through. Raises
        nothing; a save that had failed already is told by the next call that waits.
        """
        saving = self._saving
        if saving is not None and saving.cancel():
            saving.wait()

    def close(self) -> None:
        """Waits for the save that runs, then closes the handler.

        Raises:
            Exception: What the save raised, if nobody was told; it is closed all the same.
        """
        try:
            self._wait()
        finally:
            super().close()

    def _wait(self) -> None:
        saving = self._saving
        if saving is not None:
            saving.wait()
            self._tell(saving)

    def _tell(self, saving: AsyncResponse[None]) -> None:
        """Raises what a save that has ended raised, unless somebody was told or stopped it."""
        if self._saving is saving:
            self._saving = None  # its error may hold on to much
        saving.raise_untold()
