"""The commit protocol as an interface, and the transaction it works on."""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from holdfast_metadata.commit import CommitRecord
from holdfast_metadata.manifest import ManifestEntry

if TYPE_CHECKING:
    from holdfast_storage.commit.pace import Pace
    from holdfast_storage.commit.staging import StagingArea


Removal = Callable[[], Awaitable[None]]
"""Deletes what was un-committed. Calling it again, or never, is safe: a sweep finds the rest."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One attempt at saving one checkpoint. Plain data: it crosses processes as JSON.

    Attributes:
        final: The prefix the checkpoint will be known by.
        staging: The prefix the attempt writes below.
        attempt: Its unique id, made by `begin`.
        strategy: Name of the strategy that began it.
        expects_attempt: The attempt that `begin` found committed, or None.
        expects_token: Version of the record that `begin` read, or None if there was none.
    """

    final: str
    staging: str
    attempt: str
    strategy: str
    expects_attempt: str | None = None
    expects_token: str | None = None

    def token(self) -> str:
        """Encodes the transaction for another process."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_token(cls, token: str) -> Transaction:
        """The inverse of `token`."""
        return cls(**json.loads(token))


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep did: prefixes removed, prefixes left alone and why."""

    removed: tuple[str, ...] = ()
    spared: tuple[tuple[str, str], ...] = ()


class CommitStrategy(abc.ABC):
    """How an attempt becomes a checkpoint, all of it or none.

    Calls in order, and who makes them: `begin` (coordinator), `area` and `seal` (every
    process), then after a barrier `commit` (coordinator). `abort`, `retire` and `sweep`
    are the coordinator's too.

    Attributes:
        name: What a transaction calls it.
        renames: Whether a checkpoint becomes visible by a rename, rather than by its record.
        moves_to_trash: Whether `to_trash` moves folders, those of Orbax's too.
        pace: How fast `Removal`s and `sweep` delete data.
    """

    name: str
    pace: Pace
    renames: bool = False
    moves_to_trash: bool = False

    @abc.abstractmethod
    async def begin(self, final: str, *, kind: str = "save") -> Transaction:
        """Starts an attempt and marks its staging as ours.

        Raises:
            DestinationOccupiedError: `final` holds something that is no checkpoint.
            RecordUnreadableError: A record is there that cannot be read.
        """

    @abc.abstractmethod
    def area(self, txn: Transaction) -> StagingArea:
        """The attempt's staging as a `WriteArea` that remembers what was written. No I/O."""

    @abc.abstractmethod
    async def seal(self, txn: Transaction, area: StagingArea) -> tuple[ManifestEntry, ...]:
        """Makes what this process wrote durable and lists it with sizes and digests."""

    @abc.abstractmethod
    async def commit(
        self,
        txn: Transaction,
        entries: Sequence[ManifestEntry],
        *,
        replace: bool = False,
    ) -> CommitRecord:
        """Writes the manifest and makes the attempt visible, all of it or none.

        Once this returns, the checkpoint opens on every host and keeps opening across a
        crash or a power cut. Calling it again with the same transaction is safe.

        Raises:
            CommitConflictError: Another attempt is committed there (and `replace` is
                false, or it is not the one that `begin` saw).
            AttemptLostError: This attempt was fenced, or its files are gone.
            CommitUnknownError: The decision was sent and its outcome cannot be read.
            UnsupportedOperationError: `replace` on a store that cannot.
        """

    @abc.abstractmethod
    async def abort(self, txn: Transaction) -> None:
        """Removes the attempt's staging; fences first if a decision request has left."""

    @abc.abstractmethod
    async def fence(self, final: str, attempt: str) -> bool:
        """Makes it impossible to commit an attempt, for good; deletes nothing.

        A sweep then finds its data, however young it is.

        Returns:
            False if it was committed before.
        """

    @abc.abstractmethod
    async def uncommit(self, final: str, *, expected: str) -> Removal:
        """Un-commits attempt `expected`, so that nobody sees it any more.

        Returns:
            What deletes its data and nothing else; it may take long.

        Raises:
            LeaseLostError: The `guard` said so; the attempt is visible as before.
            CommitConflictError: Another attempt is committed there by now.
            CheckpointNotFoundError: Nothing is committed there.
        """

    @abc.abstractmethod
    async def uncommit_orbax(self, final: str) -> Removal:
        """Takes a checkpoint that Orbax wrote out of sight, for holdfast first.

        Returns:
            What deletes its files and nothing else, first those by which Orbax knows it.

        Raises:
            CheckpointNotFoundError: There is none, or Orbax has not finished it.
            CommitConflictError: Something else came there meanwhile; it stays.
        """

    @abc.abstractmethod
    async def to_trash(self, final: str, *, expected: str | None, aside: str) -> None:
        """Un-commits attempt `expected` and keeps its data; see `Trash`.

        Where folders move it is at `aside` then, which must be free in a folder that exists;
        elsewhere, or where the final holds more than that, its record says so.

        Args:
            final: Where it is.
            expected: The attempt; None for a checkpoint of Orbax's.
            aside: Where it goes.

        Raises:
            CommitConflictError: Another attempt is committed there by now.
            CheckpointNotFoundError: Nothing is committed there.
            UnsupportedOperationError: Orbax wrote it and the store cannot move it.
            ObjectExistsError: `aside` is taken.
        """

    @abc.abstractmethod
    async def from_trash(self, final: str, *, attempt: str | None, aside: str | None) -> None:
        """The inverse of `to_trash`; replaces nothing.

        Args:
            final: Where it was.
            attempt: The attempt; None for a checkpoint of Orbax's.
            aside: The folder that was moved; None if the data stayed.

        Raises:
            CommitConflictError: Another attempt is committed there.
            DestinationOccupiedError: Something else is in the way.
            CheckpointNotFoundError: It is not in the trash any more.
        """

    @abc.abstractmethod
    async def empty_trash(self, final: str, *, attempt: str) -> Removal:
        """Gives up an attempt that is in the trash by its record; it cannot come back.

        Returns:
            What deletes its data and nothing else.

        Raises:
            CheckpointNotFoundError: It is committed (again), or nothing was ever here.
        """

    async def retire(self, final: str, *, expected: str) -> None:
        """Un-commits attempt `expected`, then deletes its data; raises as `uncommit`."""
        remove = await self.uncommit(final, expected=expected)
        await remove()

    @abc.abstractmethod
    async def sweep(self, parent: str, *, older_than: float = 3600.0) -> SweepReport:
        """Fences, then deletes, what dead attempts left one level below `parent`.

        Touches only prefixes that carry holdfast's mark and whose writer is provably
        gone or silent for `older_than` seconds by the store's clock.
        """
