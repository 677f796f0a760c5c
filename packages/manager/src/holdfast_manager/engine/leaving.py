"""How a run is closed while an error of the caller's is under way."""

from __future__ import annotations

import logging
from collections.abc import Callable

_log = logging.getLogger(__name__)


def leave(error: BaseException, close: Callable[[], object]) -> None:
    """Closes; what fails meanwhile is noted at the error, and never raised in its place."""
    try:
        close()
    except Exception as other:  # noqa: BLE001 - the error that is under way is the one to tell
        error.add_note(f"a background save failed as well: {type(other).__name__}: {other}")
        _log.exception("a background save failed as well")
