"""Checkpointers that come with their handler."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.args import StandardRestore, StandardSave
from holdfast_checkpointer.async_checkpointer import AsyncCheckpointer
from holdfast_checkpointer.checkpointer import Checkpointer
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.standard import StandardCheckpointHandler


class StandardCheckpointer(AsyncCheckpointer):
    """An `AsyncCheckpointer` for PyTrees of arrays and numbers.

    Args:
        async_options: See `AsyncCheckpointer`, likewise all others up to `context`.
        multiprocessing_options: See `AsyncCheckpointer`.
        file_options: See `AsyncCheckpointer`.
        atomicity_options: See `AsyncCheckpointer`.
        checkpoint_metadata_store: See `AsyncCheckpointer`.
        temporary_path_class: See `AsyncCheckpointer`.
        context: See `AsyncCheckpointer`.
        **handler: Arguments of `StandardCheckpointHandler`.

    Examples:
        >>> import holdfast as hf, numpy as np
        >>> with hf.StandardCheckpointer() as checkpointer:
        ...     checkpointer.save("memory://doc/standard", {"w": np.ones(2)})
        ...     checkpointer.restore("memory://doc/standard")
        {'w': array([1., 1.])}
    """

    def __init__(
        self,
        *,
        async_options: options.AsyncOptions | None = None,
        multiprocessing_options: options.MultiprocessingOptions | None = None,
        file_options: options.FileOptions | None = None,
        atomicity_options: options.AtomicityOptions | None = None,
        checkpoint_metadata_store: Any = None,
        temporary_path_class: Any = None,
        context: options.Context | None = None,
        **handler: Any,
    ) -> None:
        super().__init__(
            StandardCheckpointHandler(multiprocessing_options=multiprocessing_options, **handler),
            async_options=async_options,
            multiprocessing_options=multiprocessing_options,
            file_options=file_options,
            atomicity_options=atomicity_options,
            checkpoint_metadata_store=checkpoint_metadata_store,
            temporary_path_class=temporary_path_class,
            context=context,
        )

    def save(  # type: ignore[override]  # as in Orbax: a tree, not arguments
        self,
        directory: str | PathLike[str],
        state: Any,
        *,
        save_args: Any = None,
        force: bool = False,
        custom_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Saves a tree in the background; see `AsyncCheckpointer.save`.

        Args:
            directory: A path or URL.
            state: The tree.
            save_args: A tree of `args.SaveArgs`; see `args.StandardSave`.
            force: Replace a checkpoint that is there; it stays until the new one is
                committed.
            custom_metadata: A JSON object to store beside it.
        """
        args = StandardSave(state, save_args=save_args)
        super().save(directory, args=args, force=force, custom_metadata=custom_metadata)

    def restore(
        self,
        directory: str | PathLike[str],
        target: Any = None,
        *,
        strict: bool = True,
        **further: Any,
    ) -> Any:
        """Waits for the save that runs, then restores; see `Checkpointer.restore`.

        Args:
            directory: A path or URL.
            target: What to make; see `args.StandardRestore.item`.
            strict: False pads with zeros or truncates where a target's shape differs.
            **further: Other fields of `args.StandardRestore`.
        """
        args = StandardRestore(target, strict=strict, **further)
        return super().restore(directory, args=args)


class PyTreeCheckpointer(Checkpointer):
    """A `Checkpointer` for any PyTree; its saves return when they are committed.

    Args:
        primary_host: See `options.MultiprocessingOptions`.
        use_ocdbt: See `options.ArraySaveOptions`; only True is accepted.
        use_zarr3: Likewise.
        use_compression: Likewise; None takes what the context says.
        context: Options; they win over an entered `Context`.

    Raises:
        UnsupportedOptionError: An option has no meaning here.
    """

    def __init__(
        self,
        primary_host: int | None = 0,
        use_ocdbt: bool = True,
        use_zarr3: bool = True,
        use_compression: bool | None = None,
        *,
        context: options.Context | None = None,
    ) -> None:
        handler = PyTreeCheckpointHandler(
            use_ocdbt=use_ocdbt, use_zarr3=use_zarr3, use_compression=use_compression
        )
        super().__init__(
            handler,
            multiprocessing_options=options.MultiprocessingOptions(primary_host=primary_host),
            context=context,
        )
