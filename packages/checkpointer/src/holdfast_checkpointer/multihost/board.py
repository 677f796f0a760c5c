"""Where the processes of a job wait, shown by those that wait for long."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass

from holdfast_checkpointer.multihost.errors import CoordinationError
from holdfast_checkpointer.multihost.service import KeyValueService

_standing: set[str] = set()  # the entries of this process, which outlive an operation that stalled


@dataclass(frozen=True)
class Place:
    """Where a process waits.

    Attributes:
        operation: The key of what it does.
        call: The key of the call that this is part of; empty if of none.
        what: For messages.
    """

    operation: str
    call: str
    what: str


class Board:
    """One entry for each process that waits for long.

    Args:
        service: Where the processes meet.
        key: Of the board, the same on every process.
        me: This process.
    """

    def __init__(self, service: KeyValueService, key: str, me: int) -> None:
        self._service = service
        self._key = key
        self._mine = f"{key}/{me}"

    async def show(self, place: Place) -> None:
        """Says where this process waits."""
        _standing.add(self._mine)
        value = json.dumps([place.operation, place.call, place.what]).encode()
        with contextlib.suppress(CoordinationError):
            await self._service.put(self._mine, value, overwrite=True)

    async def take_down(self) -> None:
        """Removes what `show` said, now or in an earlier operation."""
        if self._mine in _standing:
            with contextlib.suppress(CoordinationError):
                await self._service.delete(self._mine)
                _standing.discard(self._mine)

    async def read(self) -> dict[int, Place]:
        """Where those wait that have said so."""
        found = await self._service.list(self._key)
        return {
            int(key.rpartition("/")[2]): Place(*json.loads(value)) for key, value in found.items()
        }
