"""What handlers see: a place to write into, and a place to read from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from holdfast_storage.values import KvTarget


@runtime_checkable
class WriteArea(Protocol):
    """A scope that belongs to one attempt. Nothing in it is visible before the commit."""

    @property
    def label(self) -> str:
        """For messages: where this is, as a URL or path."""
        ...

    def child(self, name: str) -> WriteArea:
        """A scope below this one; no I/O."""
        ...

    async def put(self, name: str, data: bytes) -> None:
        """Stores a small file; durable once the attempt is sealed."""
        ...

    def kv_target(self, name: str = "") -> KvTarget:
        """How TensorStore writes below this scope."""
        ...

    def local_path(self) -> str | None:
        """The folder of this host that this scope is, for programs that write with `open`.

        It need not exist. None where the store has no such folder. Files in it become part of
        what is saved, with their digests, and are durable once the attempt is sealed.
        """
        ...

    async def files(self) -> Mapping[str, int]:
        """Every file below this scope by now, at any depth, with its size."""
        ...


@runtime_checkable
class ReadArea(Protocol):
    """A scope inside one committed checkpoint (or any readable folder)."""

    @property
    def label(self) -> str:
        """For messages: where this is, as a URL or path."""
        ...

    def child(self, name: str) -> ReadArea:
        """A scope below this one; no I/O."""
        ...

    async def get(self, name: str) -> bytes:
        """Reads a small file; checked against the manifest where there is one.

        Raises:
            ObjectNotFoundError: It is not part of the checkpoint.
            DamagedCheckpointError: Its bytes are not those that were saved.
        """
        ...

    async def names(self) -> Sequence[str]:
        """The files and folders one level below, sorted; folders end in `/`."""
        ...

    def kv_target(self, name: str = "") -> KvTarget:
        """How TensorStore reads below this scope."""
        ...

    def local_path(self) -> str | None:
        """The folder of this host that this scope is, or None; nothing in it is checked."""
        ...

    async def files(self) -> Mapping[str, int]:
        """Every file below this scope, at any depth, with its size."""
        ...

    async def check(self) -> None:
        """Compares every file below this scope that has a digest with what was saved.

        Raises:
            DamagedCheckpointError: One is gone or differs.
        """
        ...
