"""Options that a v0 checkpointer is made with, as groups of a `Context`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from holdfast_checkpointer import options
from holdfast_checkpointer.options.checks import refuse_unless


def instance_options(
    *,
    timeout_secs: float | None = None,
    async_options: options.AsyncOptions | None = None,
    multiprocessing_options: options.MultiprocessingOptions | None = None,
    file_options: options.FileOptions | None = None,
    atomicity_options: options.AtomicityOptions | None = None,
    checkpoint_metadata_store: Any = None,
    temporary_path_class: Any = None,
) -> Mapping[str, Any]:
    """The groups of options that were given; each wins over that of the context.

    Raises:
        TypeError: An option is not of its class.
        ValueError: `timeout_secs` is not positive, or (`UnsupportedOptionError`) an option has
            no meaning here; the message says why, and what is done instead.
    """
    refuse_unless(
        checkpoint_metadata_store is None,
        "checkpoint_metadata_store",
        checkpoint_metadata_store,
        accepts="None",
        because="the checkpoint's document is written inside its one commit",
    )
    refuse_unless(
        temporary_path_class is None,
        "temporary_path_class",
        temporary_path_class,
        accepts="None",
        because="the storage of a URL decides how a checkpoint becomes visible",
    )
    groups = {
        "asynchronous": async_options,
        "multiprocessing": multiprocessing_options,
        "file": file_options,
        "atomicity": atomicity_options,
    }
    given: dict[str, Any] = {name: group for name, group in groups.items() if group is not None}
    options.Context(**given)  # refuses what is not of its class
    if timeout_secs is not None:
        base = async_options or options.AsyncOptions()
        given["asynchronous"] = dataclasses.replace(base, timeout_secs=timeout_secs)
    return given
