"""Seeing a decision through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_log = logging.getLogger(__name__)


async def carry_through(coroutine: Coroutine[Any, Any, T]) -> T:
    """Awaits to the end even if the caller is cancelled meanwhile.

    A decision that is half sent must be seen through: stopping in the middle would leave
    an outcome that nobody knows.
    """
    task = asyncio.ensure_future(coroutine)
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            _log.debug("cancelled during a commit or clean-up; carrying it through")
    return task.result()
