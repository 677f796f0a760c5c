"""Which handler a checkpoint's handler string means here.

No module named in a file is ever imported: a string is only compared with what is known.
"""

from __future__ import annotations

from collections.abc import Iterable

from holdfast_checkpointer.handlers.base import CheckpointHandler
from holdfast_checkpointer.handlers.foreign.recognition import typestr_of

_ORBAX = "orbax.checkpoint."
# Class names, of Orbax's handlers of both generations, whose files are those of ours.
_SAME_FILES = {
    "PyTreeHandler": "PyTreeCheckpointHandler",
    "BasePyTreeCheckpointHandler": "PyTreeCheckpointHandler",
    "JsonHandler": "JsonCheckpointHandler",
    "MetricsHandler": "JsonCheckpointHandler",
    "ProtoHandler": "ProtoCheckpointHandler",
}


def match_recorded(
    recorded: str | None,
    known: Iterable[type],
    builtin: Iterable[type[CheckpointHandler]],
) -> type | None:
    """The class that a handler string means; None if it is a wrapper's or not known.

    The exact string first, then the class name under any module of Orbax's, for it has moved
    them before.

    Args:
        recorded: What the checkpoint says.
        known: All handlers, those registered by users too.
        builtin: Holdfast's own.
    """
    if recorded is None:
        return None
    for handler in known:
        if recorded in (typestr_of(handler), f"{handler.__module__}.{handler.__qualname__}"):
            return handler
    if not recorded.startswith(_ORBAX):
        return None
    name = recorded.rpartition(".")[2]
    name = _SAME_FILES.get(name, name)
    return next((handler for handler in builtin if handler.__name__ == name), None)
