"""Options that Orbax's handlers are made with: those with a meaning work, others are refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from holdfast_checkpointer import options
from holdfast_checkpointer.options.checks import refuse_unless


@dataclass(frozen=True, kw_only=True)
class CompositeOptions:
    """Options of a `CompositeCheckpointHandler`, as Orbax groups them.

    All items share the checkpoint's one commit, to which files, atomicity and background work
    belong: such options are given to the checkpointer or its context.

    Attributes:
        multiprocessing_options: See `options.MultiprocessingOptions`.
        temporary_path_class: Only None: an item has no temporary path of its own.
        file_options: Only None or the default.
        atomicity_options: Only None or the default.
        async_options: Only None or the default.

    Raises:
        TypeError: An option is not of its class.
        UnsupportedOptionError: An option has no meaning here.
    """

    multiprocessing_options: options.MultiprocessingOptions | None = None
    temporary_path_class: Any = None
    file_options: options.FileOptions | None = None
    atomicity_options: options.AtomicityOptions | None = None
    async_options: options.AsyncOptions | None = None

    def __post_init__(self) -> None:
        check_processes(self.multiprocessing_options)
        refuse_unless(
            self.temporary_path_class is None,
            "temporary_path_class",
            self.temporary_path_class,
            accepts="None",
            because="an item has no temporary path: all items share one commit",
        )
        for name, kind in (
            ("file_options", options.FileOptions),
            ("atomicity_options", options.AtomicityOptions),
            ("async_options", options.AsyncOptions),
        ):
            value = getattr(self, name)
            check_group(name, value, kind)
            refuse_unless(
                value is None or value == kind(),
                name,
                value,
                accepts="None or the default; give it to the checkpointer or its context",
                because="an item has no commit of its own",
            )


def check_group(name: str, value: Any, kind: type) -> None:
    """Refuses an option that is not of its class.

    Raises:
        TypeError: The message names both.
    """
    if value is not None and not isinstance(value, kind):
        found = f"{type(value).__module__}.{type(value).__qualname__}"
        raise TypeError(f"{name} must be holdfast's {kind.__name__}, got {found}")


def check_processes(given: Any) -> None:
    """Refuses processes that this job does not have.

    Raises:
        TypeError: It is no `MultiprocessingOptions`.
        ValueError: The message says which processes there are.
    """
    check_group("multiprocessing_options", given, options.MultiprocessingOptions)
    if given is not None and given != options.MultiprocessingOptions():
        given.check_against(jax.process_count())
