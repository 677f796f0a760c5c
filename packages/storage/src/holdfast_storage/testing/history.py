"""Actors at one checkpoint, and the judgement of what they were told.

Each actor saves, overwrites, retires, sweeps or aborts, through its own view of a shared
store. Afterwards the store must hold one attempt whole or nothing, and nobody may have
been told something else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from holdfast_metadata import LEASE_DIR
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import list_committed, read_record, reading
from holdfast_storage.commit.hints import HINTS
from holdfast_storage.commit.layout import ADVISORY_FILE, PASSING_PREFIXES, decision
from holdfast_storage.commit.opening import CommittedArea
from holdfast_storage.commit.pointer import PointerCommit
from holdfast_storage.commit.strategy import Transaction
from holdfast_storage.testing.faulty import FaultyBackend, SimulatedCrash


async def strategy_for(backend: StorageBackend) -> PointerCommit:
    """The backend's strategy, without grace and with a short patience."""
    kind = type(await backend.commit_strategy())
    assert issubclass(kind, PointerCommit)
    return kind(backend, grace_s=0.0, decision_deadline_s=10.0, pause_s=0.001)


def files_of(label: str) -> dict[str, bytes]:
    """The files that an actor saves: the same names and sizes for everyone."""
    return {name: f"{label:>8}:{name}".encode() for name in ("a", "sub/b")}


@dataclass
class History:
    """What every actor did and was told, at one final.

    Attributes:
        final: The checkpoint they compete for.
        begun: The transaction of each writer.
        acknowledged: Writers that were told "committed".
        refused: Writers that were told "never", and by which error.
        unknown: Writers that were told that nobody knows, and those that crashed.
        retired: Attempts that a retiring actor may have removed.
    """

    final: str
    begun: dict[str, Transaction] = field(default_factory=dict)
    acknowledged: set[str] = field(default_factory=set)
    refused: dict[str, str] = field(default_factory=dict)
    unknown: set[str] = field(default_factory=set)
    retired: set[str] = field(default_factory=set)

    async def save(self, backend: StorageBackend, label: str) -> None:
        """Saves without replacing."""
        await self._write(backend, label, replace=False)

    async def overwrite(self, backend: StorageBackend, label: str) -> None:
        """Saves, replacing what `begin` saw."""
        await self._write(backend, label, replace=True)

    async def _write(self, backend: StorageBackend, label: str, *, replace: bool) -> None:
        strategy = await strategy_for(backend)
        try:
            txn = await strategy.begin(self.final)
        except errors.StorageError as error:
            self.refused[label] = type(error).__name__
            return
        self.begun[label] = txn
        try:
            area = strategy.area(txn)
            for name, data in files_of(label).items():
                await area.put(name, data)
            entries = await strategy.seal(txn, area)
            await strategy.commit(txn, entries, replace=replace)
            self.acknowledged.add(label)
        except (errors.CommitUnknownError, SimulatedCrash):
            self.unknown.add(label)
        except errors.StorageError as error:
            self.refused[label] = type(error).__name__
            await _quietly(strategy.abort(txn))

    async def retire(self, backend: StorageBackend, label: str) -> None:
        """Removes whatever is committed."""
        stored = await read_record(backend, self.final)
        if stored.attempt is not None:
            self.retired.add(stored.attempt)
            strategy = await strategy_for(backend)
            await _quietly(strategy.retire(self.final, expected=stored.attempt))

    async def sweep(self, backend: StorageBackend, label: str) -> None:
        """Sweeps, taking every writer for dead."""
        strategy = await strategy_for(backend)
        await _quietly(strategy.sweep(keys.parent(self.final), older_than=0.0))

    async def abort(self, backend: StorageBackend, label: str) -> None:
        """Aborts the attempt of the writer `A` from another process."""
        if "A" in self.begun:
            await _quietly((await strategy_for(backend)).abort(self.begun["A"]))

    async def die(self, backend: StorageBackend, label: str) -> None:
        """Begins an attempt and does not go on."""
        strategy = await strategy_for(backend)
        await strategy.area(await strategy.begin(self.final)).put("a", b"unfinished")

    async def act(self, what: str, backend: StorageBackend, label: str) -> None:
        """Runs one actor; its own crash ends it."""
        actors: dict[str, Callable[[StorageBackend, str], Awaitable[None]]] = {
            "save": self.save,
            "overwrite": self.overwrite,
            "retire": self.retire,
            "sweep": self.sweep,
            "abort": self.abort,
            "die": self.die,
        }
        try:
            await actors[what](backend, label)
        except SimulatedCrash:
            return

    async def committed(self, backend: StorageBackend) -> str | None:
        """Whose checkpoint is there, None if none; whole and of one writer.

        Raises:
            AssertionError: It mixes writers.
            DamagedCheckpointError: It is torn.
        """

        async def read(area: CommittedArea) -> dict[str, bytes]:
            return {path: await area.get(path) for path in area.manifest.by_path}

        try:
            found = await reading(backend, self.final, read)
        except errors.CheckpointNotFoundError:
            return None
        label = found["a"].partition(b":")[0].decode().strip()
        assert found == files_of(label), f"files of several writers: {found}"
        return label

    def missing(self, there: str | None) -> list[str]:
        """Acknowledged writers whose checkpoint is neither there nor rightly gone."""
        return [
            label
            for label in sorted(self.acknowledged)
            if label != there
            and self.begun[label].attempt not in self.retired
            and self.begun[label].attempt not in self._replaced(there)
        ]

    def _replaced(self, there: str | None) -> set[str | None]:
        """Attempts that a writer replaced whose own checkpoint came to be visible."""
        visible = self.acknowledged | self.unknown | ({there} if there else set())
        visible |= {w for w, txn in self.begun.items() if txn.attempt in self.retired}
        while True:
            expected = {self.begun[w].expects_attempt for w in visible if w in self.begun}
            more = {w for w, txn in self.begun.items() if txn.attempt in expected} - visible
            if not more:
                return expected
            visible |= more

    async def judge(self, backend: StorageBackend) -> str | None:
        """Holds everyone to what they were told, before and after the sweep of a stranger.

        What a crashed process left half done may take that sweep to come right; whatever
        is visible is whole at all times.
        """
        before = await self.committed(backend)
        for _ in range(3):
            await (await strategy_for(backend)).sweep(keys.parent(self.final), older_than=0.0)
        there = await self.committed(backend)
        if not self.unknown:
            assert there == before, f"a sweep changed {before} to {there}"
        assert not self.missing(there), f"{self.missing(there)} lost; there is {there}"
        assert there not in self.refused, f"{there} is there, but was told {self.refused}"
        return there

    async def leftovers(self, backend: StorageBackend) -> list[str]:
        """Objects beside the committed checkpoint, records and unrelated ones left out."""
        record = (await read_record(backend, self.final)).record
        data = keys.join(self.final, record.data) if record and record.committed else None
        spared = {keys.join(self.final, name) for name in ("_COMMIT.json", ADVISORY_FILE)}
        spared.add(decision(self.final))
        left = []
        async for info in backend.walk(keys.parent(self.final)):
            ours = data is not None and keys.is_under(info.key, data)
            if not ours and info.key not in spared and keys.leaf(info.key) != "unrelated":
                left.append(info.key)
        return left


async def _quietly(action: Awaitable[object]) -> None:
    """Whatever the store answers, the judgement is about what is there afterwards."""
    try:
        await action
    except errors.StorageError:
        return


async def until_paused(actor: asyncio.Task[None], view: FaultyBackend) -> bool:
    """Waits until the actor pauses or ends; says whether it paused."""
    reached = asyncio.ensure_future(view.reached.wait())
    await asyncio.wait([actor, reached], return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    return view.reached.is_set()


async def litter(backend: StorageBackend) -> list[str]:
    """What belongs to no committed checkpoint below the root, after two sweeps without grace.

    Records, decisions, hints and leases are left out: they stay, or go with their step. So is
    the empty object by which a process asks for the store's time: nobody can know whose it is,
    so what a death leaves of that goes when it is an hour old.
    """
    for _ in range(2):
        await (await strategy_for(backend)).sweep("")
    listing = await list_committed(backend, "")
    data = [keys.join(entry.name, entry.record.data) for entry in listing.committed]
    left = []
    async for info in backend.walk(""):
        leaf = keys.leaf(info.key)
        said = leaf in ("_COMMIT.json", ADVISORY_FILE) or leaf.endswith(".commit")
        said = said or leaf.startswith(PASSING_PREFIXES)
        if not said and not any(
            keys.is_under(info.key, prefix) for prefix in (*data, HINTS, LEASE_DIR)
        ):
            left.append(info.key)
    return left
