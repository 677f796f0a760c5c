"""The value types that a backend and its callers exchange. No behaviour, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from holdfast_storage.errors import StorageError


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """Names one content of one key: a GCS generation, an S3 ETag, an inode with its times.

    Opaque: compare for equality, hand it back in `IfVersion`, nothing else.
    """

    token: str


@dataclass(frozen=True, slots=True)
class IfAbsent:
    """Write only if the key does not exist."""


@dataclass(frozen=True, slots=True)
class IfVersion:
    """Write only if the key still has this version."""

    version: ObjectVersion


Precondition = IfAbsent | IfVersion


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes `start` (included) to `stop` (excluded)."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ValueError(f"a byte range needs 0 <= start <= stop, got {self}")


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object.

    Attributes:
        key: Relative to the backend's root.
        size: In bytes.
        version: Changes whenever the content does.
        modified: Seconds since the epoch by the store's own clock.
    """

    key: str
    size: int
    version: ObjectVersion
    modified: float


@dataclass(frozen=True, slots=True)
class Listing:
    """One level below a prefix: full prefixes (no trailing slash) and objects, sorted."""

    prefixes: tuple[str, ...]
    objects: tuple[ObjectInfo, ...]


@dataclass(frozen=True, slots=True)
class Names:
    """One level below a prefix by last segments alone, which costs less than a `Listing`."""

    prefixes: frozenset[str] = frozenset()
    objects: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do. Read by commit strategies and the conformance suite only."""

    create_if_absent: bool
    compare_and_swap: bool
    rename_prefix: bool
    exchange_prefix: bool = False


@dataclass(frozen=True, slots=True)
class IoHints:
    """Advice for writers and readers, so that nobody asks which store it is.

    Attributes:
        target_file_bytes: Size at which a writer starts the next data file.
        max_concurrency: Requests worth having under way at once.
        coalesce_bytes: Reads closer than this are cheaper as one.
        round_trips: Each request crosses a network: a run keeps hints of its committed
            steps, so that opening it does not ask for each of them.
    """

    target_file_bytes: int
    max_concurrency: int
    coalesce_bytes: int
    round_trips: bool = False


class Explain(Protocol):
    """Says what a refusal over HTTP means."""

    def __call__(self, status: int, body: str, *, key: str, root: str) -> StorageError | None:
        """The error for a reply; None if the reply says nothing of its own."""
        ...


@dataclass(frozen=True, slots=True)
class KvTarget:
    """How TensorStore reaches a prefix.

    Attributes:
        spec: A TensorStore key-value store spec whose `path` ends in `/`.
        context: Context resources that the spec needs, by name.
        hints: See `IoHints`.
        shared: For stores inside this process (memory): the TensorStore context
            object that every handle must share, else None.
        described: How the store is reached, for messages: resolved settings, no secrets.
        explain: For stores behind HTTP: the error that a refusal means, by its status and
            body, with key and root for the message; None if it says nothing of its own.
    """

    spec: Mapping[str, Any]
    context: Mapping[str, Any] = field(default_factory=dict)
    hints: IoHints = field(default_factory=lambda: IoHints(2 << 30, 32, 64 << 10))
    shared: Any = None
    described: str = ""
    explain: Explain | None = field(default=None, compare=False)
