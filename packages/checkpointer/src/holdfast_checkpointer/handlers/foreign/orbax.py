"""What Orbax's own registries know. Orbax is asked only if the program has imported it."""

from __future__ import annotations

import sys
from typing import Any

_PACKAGE = "orbax.checkpoint"
_TYPES = "orbax.checkpoint._src.handlers.handler_type_registry"


def arguments_base() -> type | None:
    """Orbax's base class of arguments; None without Orbax."""
    found = getattr(_arguments(), "CheckpointArgs", None)
    return found if isinstance(found, type) else None


def handler_class(arguments: type) -> type | None:
    """The handler class that is registered with Orbax for a class of arguments."""
    found: type | None = _asked("get_registered_handler_cls", arguments)
    return found


def arguments_classes(handler: type) -> tuple[type, type] | None:
    """The classes of arguments that are registered with Orbax for a handler class."""
    found: tuple[type, type] | None = _asked("get_registered_args_cls", handler)
    return found


def handler_of_typestr(recorded: str) -> type | None:
    """The handler class that was registered with Orbax under exactly this string."""
    registry = getattr(sys.modules.get(_TYPES), "_GLOBAL_HANDLER_TYPE_REGISTRY", None)
    try:
        found = registry.get(recorded) if registry is not None else None
    except KeyError:
        return None
    return found if isinstance(found, type) else None


def _asked(question: str, kind: type) -> Any:
    ask = getattr(_arguments(), question, None)
    try:
        return None if ask is None else ask(kind)
    except (TypeError, ValueError):
        return None


def _arguments() -> Any:
    return getattr(sys.modules.get(_PACKAGE), "args", None)
