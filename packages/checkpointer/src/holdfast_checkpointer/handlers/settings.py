"""Options that a v0 handler of PyTrees is made with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from holdfast_checkpointer import options
from holdfast_checkpointer.options.checks import refuse_unless

_GB = 10**9


@dataclass(frozen=True)
class HandlerSettings:
    """What a handler's own arguments change in the context of its calls.

    Attributes:
        memory: Fields of `options.MemoryOptions`.
        saving: Fields of `options.ArraySaveOptions`.
        multiprocessing: See `options.MultiprocessingOptions`.
    """

    memory: Mapping[str, Any] = field(default_factory=dict)
    saving: Mapping[str, Any] = field(default_factory=dict)
    multiprocessing: options.MultiprocessingOptions | None = None

    def applied(self, context: options.Context) -> options.Context:
        """The context of a call, with these settings."""
        if not self.memory and not self.saving:
            return context
        saving = dataclasses.replace(context.array.saving, **self.saving)
        return options.Context(
            context,
            memory=dataclasses.replace(context.memory, **self.memory),
            array=dataclasses.replace(context.array, saving=saving),
        )

    def check_processes(self) -> None:
        """Refuses processes that the job does not have.

        Raises:
            ValueError: The message says which there are.
        """
        if self.multiprocessing is not None:
            self.multiprocessing.check_against(jax.process_count())


def handler_settings(
    *,
    aggregate_filename: str | None = None,
    save_concurrent_gb: float | None = None,
    restore_concurrent_gb: float | None = None,
    save_device_host_concurrent_gb: float | str | None = None,
    memory_limit_options: options.MemoryLimitOptions | None = None,
    multiprocessing_options: options.MultiprocessingOptions | None = None,
    pytree_metadata_options: options.PyTreeMetadataOptions | None = None,
    use_compression: bool | None = None,
    **saving: Any,
) -> HandlerSettings:
    """What the arguments of a handler mean; see `PyTreeCheckpointHandler`.

    Raises:
        TypeError: An option is not of its class, or there is none of that name.
        ValueError: A value is impossible, or (`UnsupportedOptionError`) has no meaning here.
    """
    refuse_unless(
        aggregate_filename is None,
        "aggregate_filename",
        aggregate_filename,
        accepts="None",
        because="arrays are never gathered in a msgpack file; small ones share a data file",
    )
    _refuse_meaningless(saving)
    for name, value, kind in (
        ("memory_limit_options", memory_limit_options, options.MemoryLimitOptions),
        ("multiprocessing_options", multiprocessing_options, options.MultiprocessingOptions),
        ("pytree_metadata_options", pytree_metadata_options, options.PyTreeMetadataOptions),
    ):
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"{name} must be options.{kind.__name__}, got {type(value).__name__}")
    memory = {
        "write_concurrent_bytes": _bytes("save_concurrent_gb", save_concurrent_gb),
        "read_concurrent_bytes": _bytes("restore_concurrent_gb", restore_concurrent_gb),
        "transfer_concurrent_bytes": _transfer(
            save_device_host_concurrent_gb, memory_limit_options
        ),
    }
    if use_compression is not None:
        saving["use_compression"] = use_compression
        if not use_compression:
            saving["compression"] = None
    options.ArraySaveOptions(**saving)  # refuses what has no meaning
    return HandlerSettings(
        {name: value for name, value in memory.items() if value is not None},
        saving,
        multiprocessing_options,
    )


_MEANINGLESS = {
    "type_handler_registry": "how a leaf is stored follows from what it is and args.SaveArgs",
    "handler_impl": "there is one implementation",
    "array_metadata_validator": "the shapes of all chunks are compared before every commit",
    "is_prioritized_key_fn": "every leaf is on the host when a save returns",
}


def _refuse_meaningless(given: dict[str, Any]) -> None:
    for name, because in _MEANINGLESS.items():
        value = given.pop(name, None)
        refuse_unless(value is None, name, value, accepts="None", because=because)


def _bytes(name: str, gigabytes: Any) -> int | None:
    if gigabytes is None:
        return None
    number = isinstance(gigabytes, int | float) and not isinstance(gigabytes, bool)
    if not number or not gigabytes * _GB >= 1:
        raise ValueError(f"{name} must be None or a number of gigabytes above 0, got {gigabytes!r}")
    return int(gigabytes * _GB)


def _transfer(gigabytes: Any, limit: options.MemoryLimitOptions | None) -> int | None:
    """How much may be on the way to the host; "auto" takes the limit."""
    bound = None if limit is None else limit.max_transfer_concurrent_gb
    if gigabytes == "auto":
        if bound is None:
            raise ValueError(
                'save_device_host_concurrent_gb="auto" needs '
                "memory_limit_options=MemoryLimitOptions(max_transfer_concurrent_gb=...)"
            )
        gigabytes = bound
    found = [_bytes("save_device_host_concurrent_gb", gigabytes)]
    found.append(_bytes("max_transfer_concurrent_gb", bound))
    given = [value for value in found if value is not None]
    return min(given) if given else None
