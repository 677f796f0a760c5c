"""The key/value store that the processes of a job share."""

from __future__ import annotations

from typing import Protocol


class KeyTaken(Exception):
    """The key is set already, and was not changed. Never leaves this package."""


class KeyValueService(Protocol):
    """A small store in the memory of one process, reached by all of them.

    Keys are `/`-separated. Values are small: kilobytes for each process.
    """

    async def put(self, key: str, value: bytes, *, overwrite: bool = False) -> None:
        """Sets a key.

        Raises:
            KeyTaken: It is set, and `overwrite` is false.
        """

    async def get(self, key: str, *, timeout_s: float) -> bytes:
        """Waits until a key is set and returns its value.

        Raises:
            TimeoutError: It is not set after `timeout_s` seconds.
        """

    async def list(self, prefix: str) -> dict[str, bytes]:
        """Every key below a prefix, with its value."""

    async def increment(self, key: str) -> int:
        """Adds 1 to a counter that begins at 0, and returns it."""

    async def delete(self, prefix: str) -> None:
        """Removes a key and every key below it; nothing there is fine."""
