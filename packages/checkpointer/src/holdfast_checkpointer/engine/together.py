"""One checkpoint from all processes of a job: each writes its part, one commits.

All compare what they were asked to save before anything is written. The primary begins the
attempt and tells the others of it; each writes its chunks into a database of its own and makes
them durable; the primary merges by reference exactly what it was told of, and commits. Only
the record decides: a process that does not hear the end asks it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import zlib
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.names import METRICS
from holdfast_checkpointer.handlers.base import Item, ItemRecord
from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.errors import (
    CoordinationError,
    DisagreementError,
    ProcessStalledError,
    RemoteProcessError,
    StorageNotSharedError,
)
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.multihost.operation import Operation
from holdfast_checkpointer.options import Context
from holdfast_metadata import ATTEMPT_FILE, AttemptMark, CommitRecord, ManifestEntry, digest_bytes
from holdfast_storage import ObjectNotFoundError, StorageBackend, WriteArea, keys
from holdfast_storage.commit import (
    Fellows,
    Transaction,
    carry_through,
    read_record,
    take_part,
    withdraw,
    write_attempt,
)
from holdfast_storage.commit.staging import StagingArea

_log = logging.getLogger(__name__)
_STOPPING_PATIENCE_S = 10.0
_VISIBLE_WITHIN_S = 5.0
_SHOWN = 20
Documents = Callable[[WriteArea], Awaitable[None]]


def operation_for(job: Membership, deadline_s: float, place: str, call: Call | None) -> Operation:
    """The save to one place, in which all processes meet."""
    coordinator = job.coordinator(deadline_s)
    return coordinator.operation(f"save {place}", what=f"the save of {place}", call=call)


async def by_primary(
    context: Context, name: str, place: str, work: Callable[[], Awaitable[None]]
) -> None:
    """Does on the primary what takes one process; the others wait, and are told if it fails.

    The primary waits for nobody, so it may be the only one that calls this.

    Args:
        context: Options.
        name: What is done.
        place: To what.
        work: Does it.

    Raises:
        RemoteProcessError: It failed on the primary.
        ProcessStalledError: The primary did not come.
    """
    # Not `Membership.of`, which asks JAX for its devices: this may need none.
    if jax_service.process_count() == 1 or (job := Membership.of(context.multiprocessing)).alone:
        await work()
        return
    coordinator = job.coordinator(context.multiprocessing.deadline_secs)
    async with coordinator.operation(f"{name} {place}", what=f"the {name} of {place}") as operation:
        if not job.is_primary:
            await operation.conclude()
            return
        operation.enter("the work of the primary")
        await work()
        await operation.conclude(b"")


@dataclass
class JointSave:
    """A save in which this process takes part.

    Attributes:
        operation: Where the processes meet; it was entered.
        backend: The storage.
        final: The prefix of the checkpoint.
        items: What this process has of it, by name.
        replace: Whether the caller asked to replace a checkpoint that is there.
    """

    operation: Operation
    backend: StorageBackend
    final: str
    items: Mapping[str, Item]
    replace: bool

    async def agree(self) -> None:
        """Compares what the processes were asked to save.

        Raises:
            DisagreementError: On all of them; it names the processes and the leaves.
        """
        said = await asyncio.to_thread(self._fingerprint)
        data = json.dumps(said, sort_keys=True).encode()
        digest = digest_bytes(data).encode()
        verdict = await self.operation.vote(
            "the comparison of trees",
            digest,
            lambda ballots: b"same" if len(set(ballots.values())) == 1 else b"different",
        )
        if verdict == b"different":
            await self.operation.vote("the differences", zlib.compress(data), _refuse)

    def _fingerprint(self) -> dict[str, str]:
        found = {"overwrite": json.dumps({"": self.replace})}
        for name, item in self.items.items():
            found[f"item {name!r}"] = json.dumps({"handler": item.recorded_as})
            if name == METRICS:  # measured by each; those of the primary are saved
                continue
            for leaf, what in item.staged.fingerprint().items():
                found[f"{name}{leaf}"] = what
        return found

    async def lead(self, documents: Documents, *, replace: bool) -> CommitRecord:
        """Commits, and tells the others."""
        record = await self.commit(documents, replace=replace)
        await self.operation.conclude(record.to_bytes())
        return record

    async def commit(self, documents: Documents, *, replace: bool) -> CommitRecord:
        """Begins, writes this process's part, merges those of all, and commits.

        The others wait for the record as the operation's end.
        """
        leader = _Leader(self, documents)
        return await write_attempt(
            self.backend, self.final, leader.write, replace=replace, fellows=leader
        )

    async def follow(self) -> CommitRecord:
        """Writes this process's part of what the primary commits.

        Raises:
            RemoteProcessError: Another process failed; nothing of this is visible.
        """
        told = await self.operation.broadcast("the attempt")
        txn = Transaction.from_token(told.decode())
        await self.show_storage(*_mark_of(txn))
        try:
            return await self._write_part(txn)
        except BaseException as error:
            await self.operation.fail(error)  # at once: storage may be what is slow
            await carry_through(withdraw(self.backend, txn))
            raise

    async def _write_part(self, txn: Transaction) -> CommitRecord:
        self.operation.enter("the write")
        records: dict[str, ItemRecord] = {}

        async def write(area: StagingArea) -> None:
            records.update(await self.write_items(area))
            self.operation.enter("the seal")

        entries = await self.operation.until_failure(take_part(self.backend, txn, write))
        said = {
            "entries": [[entry.path, entry.size, entry.digest] for entry in entries],
            "items": self.encode(records),
        }
        try:
            await self.operation.gather("the files", json.dumps(said).encode())
            return CommitRecord.from_bytes(await self.operation.conclude())
        except (RemoteProcessError, ProcessStalledError, CoordinationError):
            stored = await read_record(self.backend, self.final)
            if stored.attempt == txn.attempt and stored.record is not None:
                return stored.record  # it was committed; only the word of it did not come
            raise

    async def write_items(self, area: WriteArea) -> dict[str, ItemRecord]:
        """Writes this process's part of each item that it has a part in."""
        primary = self.operation.is_primary
        records: dict[str, ItemRecord] = {}

        async def one(name: str, item: Item) -> None:
            staged = item.staged if primary else item.staged.for_follower()
            if staged is not None:
                records[name] = await staged.write(area.child(name) if name else area)
                self.operation.advance()

        await run_all(one(name, item) for name, item in self.items.items())
        return records

    def encode(self, records: Mapping[str, ItemRecord]) -> dict[str, str]:
        """What this process wrote of each item, for the primary."""
        return {n: self.items[n].staged.encode(record).hex() for n, record in records.items()}

    def decode(self, said: Mapping[str, str]) -> dict[str, ItemRecord]:
        """The inverse of `encode`, of what another process wrote."""
        return {n: self.items[n].staged.decode(bytes.fromhex(data)) for n, data in said.items()}

    async def finish(self, area: WriteArea, records: Mapping[str, Sequence[ItemRecord]]) -> None:
        """Merges on the primary what the processes wrote of each item."""
        await run_all(
            self.items[name].staged.finish(area.child(name) if name else area, parts)
            for name, parts in records.items()
        )

    async def show_storage(self, key: str, is_it: Callable[[bytes], bool]) -> None:
        """Makes sure that every process sees what the primary has begun.

        Args:
            key: An object that the primary has written.
            is_it: Whether what is read there is that.

        Raises:
            StorageNotSharedError: On all of them; it names those that do not.
        """
        seen = b"yes" if await self._sees(key, is_it) else f"no {self.backend.root}".encode()
        await self.operation.vote("the look at the storage", seen, _require_shared)

    async def _sees(self, key: str, is_it: Callable[[bytes], bool]) -> bool:
        for pause in (0.05, 0.2, 0.5, 1.0, _VISIBLE_WITHIN_S, 0.0):
            try:
                return is_it(await self.backend.get(key))
            except ObjectNotFoundError:  # network file systems may show it a little later
                await asyncio.sleep(pause)
        return False


@dataclass
class _Leader(Fellows):
    """The primary's side of the attempt."""

    save: JointSave
    documents: Documents
    entries: dict[str, ManifestEntry] = field(default_factory=dict)
    area: WriteArea = field(init=False)

    async def began(self, txn: Transaction) -> None:
        await self.save.operation.broadcast("the attempt", txn.token().encode())
        await self.save.show_storage(*_mark_of(txn))

    async def write(self, area: StagingArea) -> None:
        self.area = area
        operation = self.save.operation
        operation.enter("the write")
        own = await operation.until_failure(self.save.write_items(area))
        gathered = await operation.gather("the files", b"")
        assert gathered is not None
        records = {name: [record] for name, record in own.items()}
        for process in sorted(gathered.keys() - {operation.me}):
            self._take(records, json.loads(gathered[process]))
        operation.enter("the merge")
        await self.save.finish(area, records)
        await self.documents(area)
        operation.enter("the seal")

    def _take(self, records: Mapping[str, list[ItemRecord]], said: Mapping[str, Any]) -> None:
        for path, size, digest in said["entries"]:
            entry = ManifestEntry(path, size, digest)
            _require_same(entry, self.entries.setdefault(path, entry))
        for name, record in self.save.decode(said["items"]).items():
            records[name].append(record)

    async def gather(self, entries: Sequence[ManifestEntry]) -> Sequence[ManifestEntry]:
        """The files of all, as each told of its own.

        Raises:
            StorageNotSharedError: The primary does not see what another process wrote.
            DisagreementError: Two wrote the same file with different contents.
        """
        found = {entry.path: entry for entry in entries}
        for path in found.keys() & self.entries.keys():
            if found[path].digest is not None:  # else it was only seen there
                _require_same(found[path], self.entries[path])
        sizes = {path: entry.size for path, entry in found.items()}
        if self.entries.keys() - sizes.keys():
            sizes = dict(await self.area.files())
        for path, entry in self.entries.items():
            if sizes.get(path) != entry.size:
                raise StorageNotSharedError(
                    f"another process wrote {path!r} ({entry.size} bytes), which process "
                    f"{self.save.operation.me} does not see in {self.save.backend.root}"
                )
        await self.save.operation.require_no_failure()  # of one that handed in and was stopped
        self.save.operation.enter("the commit")
        return tuple({**found, **self.entries}[path] for path in sorted({**found, **self.entries}))

    async def stop(self, error: BaseException) -> None:
        await self.save.operation.fail(error)
        try:
            busy = await self.save.operation.others_stopped(_STOPPING_PATIENCE_S)
        except CoordinationError:  # the attempt is removed all the same
            _log.warning("it is not known whether the others stopped", exc_info=True)
            return
        if busy:
            _log.warning(
                "the save of %s failed, and processes %s have not said that they stopped",
                self.save.final,
                busy,
            )


def _mark_of(txn: Transaction) -> tuple[str, Callable[[bytes], bool]]:
    """Where an attempt's mark lies, and whether it is this attempt's."""
    key = keys.join(txn.staging, ATTEMPT_FILE)
    return key, lambda data: AttemptMark.from_bytes(data).attempt == txn.attempt


def _require_same(one: ManifestEntry, other: ManifestEntry) -> None:
    """Refuses a file that two processes wrote, unless they wrote the same."""
    if one != other:
        raise DisagreementError(
            f"several processes wrote {one.path!r}, and not the same into it; nothing was saved. "
            "What each process has for itself belongs in a file of its own, called by "
            "jax.process_index(), such as process_0.json"
        )


def _require_shared(ballots: Mapping[int, bytes]) -> bytes:
    blind = {p: said.decode()[3:] for p, said in sorted(ballots.items()) if said != b"yes"}
    if blind:
        where = ", ".join(f"process {p} in {root}" for p, root in list(blind.items())[:_SHOWN])
        raise StorageNotSharedError(
            f"the storage is not shared: what the primary has begun is not to be seen by {where}. "
            "All processes of a job save to one place that all of them see; onto its own disk each "
            "saves for itself what it has whole, with MultiprocessingOptions(primary_host="
            "jax.process_index(), active_processes={jax.process_index()})"
        )
    return b"yes"


def _refuse(ballots: Mapping[int, bytes]) -> bytes:
    refuse_differences({p: json.loads(zlib.decompress(data)) for p, data in ballots.items()})
    return b"same"


def refuse_differences(said: Mapping[int, Mapping[str, str]]) -> None:
    """Names what differs between the processes, each group of them once.

    Args:
        said: By process what it has of each leaf, as JSON objects.

    Raises:
        DisagreementError: Something differs.
    """
    leaves = sorted({leaf for found in said.values() for leaf in found})
    problems = []
    for leaf in leaves:
        told = [(p, said[p].get(leaf)) for p in sorted(said)]
        if len({what for _, what in told}) > 1:
            problems.append(f"  {leaf}: {_compared(told)}")
    if not problems:
        return
    shown = "\n".join(problems[:_SHOWN])
    more = f"\n  ... and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise DisagreementError(
        f"the processes do not save the same, in {len(problems)} places; nothing was saved:\n"
        f"{shown}{more}"
    )


def _compared(told: Sequence[tuple[int, str | None]]) -> str:
    """What the processes say of one leaf, as far as it differs."""
    found = [(process, json.loads(what) if what is not None else {}) for process, what in told]
    fields = {key for _, what in found for key in what}
    differ = {key for key in fields if len({str(what.get(key)) for _, what in found if what}) > 1}
    if len(differ) > 1:
        differ -= {"chunk", "bytes"}  # they follow from the others
    groups: dict[str, list[int]] = {}
    for process, what in found:
        groups.setdefault(_said(what, differ), []).append(process)
    return "; ".join(f"{what} on process {_list(who)}" for what, who in groups.items())


def _said(what: Mapping[str, Any], fields: Collection[str]) -> str:
    if not what:
        return "nothing"
    shown = {key: what[key] for key in sorted(fields or what) if what.get(key) is not None}
    if not shown:  # all of the array is on this process, and parts of it elsewhere
        return f"no {' or '.join(sorted(fields))}"
    return ", ".join(
        f"values of digest {' '.join(value)}" if key == "bytes" else f"{key} {value}".strip()
        for key, value in shown.items()
    )


def _list(processes: Sequence[int]) -> str:
    more = ", ..." if len(processes) > 8 else ""
    return ", ".join(map(str, processes[:8])) + more
