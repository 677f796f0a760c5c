"""The reading side: opening, listing and verifying what is committed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from holdfast_metadata import (
    MANIFEST_FILE,
    CommitRecord,
    Manifest,
    ManifestEntry,
    MetadataError,
    digest_bytes,
)
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import layout
from holdfast_storage.commit.occupancy import occupant
from holdfast_storage.commit.partial import read_session
from holdfast_storage.commit.record import StoredRecord, read_record
from holdfast_storage.streaming import PIECE_BYTES, digest_object
from holdfast_storage.values import KvTarget

T = TypeVar("T")
_RESTARTS = 3
_AT_ONCE = 64
_CHECKED_AT_ONCE = 4


class PlainArea:
    """A readable folder without a manifest, such as an Orbax checkpoint."""

    def __init__(self, backend: StorageBackend, prefix: str) -> None:
        self._backend = backend
        self._prefix = prefix

    @property
    def label(self) -> str:
        """Where this is, for messages."""
        return f"{self._backend.root.rstrip('/')}/{self._prefix}".rstrip("/")

    def child(self, name: str) -> PlainArea:
        """A scope below this one; no I/O."""
        return PlainArea(self._backend, self._key(name))

    async def get(self, name: str) -> bytes:
        """Reads a file."""
        return await self._backend.get(self._key(name))

    async def names(self) -> Sequence[str]:
        """Files and folders one level below; folders end in `/`."""
        listing = await self._backend.children(self._prefix)
        files = [keys.leaf(info.key) for info in listing.objects]
        return sorted(files + [f"{keys.leaf(prefix)}/" for prefix in listing.prefixes])

    def kv_target(self, name: str = "") -> KvTarget:
        """How TensorStore reads below this scope."""
        return self._backend.kv_target(self._key(name) if name else self._prefix)

    def local_path(self) -> str | None:
        """See `ReadArea.local_path`."""
        return self._backend.local_path(self._prefix)

    async def files(self) -> Mapping[str, int]:
        """Every file below this scope, by a listing."""
        walked = self._backend.walk(self._prefix)
        return {keys.relative(info.key, self._prefix): info.size async for info in walked}

    async def check(self) -> None:
        """Nothing is known of these files that could be compared."""

    def _key(self, name: str) -> str:
        keys.check_key(name, root=self.label)
        return keys.join(self._prefix, name)


class CommittedArea(PlainArea):
    """The data of one committed attempt, checked against its manifest.

    Attributes:
        final: The prefix the checkpoint is known by.
        record: The commit record it was opened by.
        manifest: Every file of it.
    """

    def __init__(
        self,
        backend: StorageBackend,
        final: str,
        record: CommitRecord,
        manifest: Manifest,
        *,
        below: str = "",
    ) -> None:
        self.final = final
        self.record = record
        self.manifest = manifest
        self._below = below
        super().__init__(backend, keys.join(final, record.data, below))

    def child(self, name: str) -> CommittedArea:
        """A scope below this one; no I/O."""
        keys.check_key(name, root=self.label)
        return CommittedArea(
            self._backend,
            self.final,
            self.record,
            self.manifest,
            below=keys.join(self._below, name),
        )

    async def get(self, name: str) -> bytes:
        """Reads a file of the checkpoint.

        Raises:
            ObjectNotFoundError: It is not part of the checkpoint.
            DamagedCheckpointError: It is gone, or its bytes are not those that were saved.
        """
        path = keys.join(self._below, name)
        entry = self.manifest.by_path.get(path)
        if entry is None:
            raise errors.ObjectNotFoundError(
                f"the checkpoint has no file {path!r}", key=self._key(name), root=self._backend.root
            )
        return await read_checked(self._backend, self._key(name), entry)

    async def names(self) -> Sequence[str]:
        """Files and folders one level below, by the manifest; no I/O."""
        found = set()
        for entry in self._entries():
            head, slash, _ = keys.relative(entry.path, self._below).partition("/")
            found.add(head + slash)
        return sorted(found)

    async def files(self) -> Mapping[str, int]:
        """Every file below this scope, by the manifest; no I/O."""
        return {keys.relative(e.path, self._below): e.size for e in self._entries()}

    async def check(self) -> None:
        """See `ReadArea.check`."""
        limit = asyncio.Semaphore(_CHECKED_AT_ONCE)
        top = keys.join(self.final, self.record.data)

        async def check(entry: ManifestEntry) -> None:
            async with limit:
                await check_file(self._backend, keys.join(top, entry.path), entry)

        await asyncio.gather(*(check(e) for e in self._entries() if e.digest is not None))

    def _entries(self) -> list[ManifestEntry]:
        below = self._below
        return [e for e in self.manifest.entries if keys.is_under(e.path, below)]


async def read_checked(backend: StorageBackend, key: str, entry: ManifestEntry) -> bytes:
    """Reads a file and compares it with its line in the manifest.

    Raises:
        DamagedCheckpointError: It is gone, or differs in size or digest.
    """
    try:
        data = await backend.get(key)
    except errors.ObjectNotFoundError as error:
        raise errors.DamagedCheckpointError(
            f"the file {entry.path!r} is missing", file=entry.path, key=key, root=backend.root
        ) from error
    problem = None
    if len(data) != entry.size:
        problem = f"has {len(data)} bytes, {entry.size} were saved"
    elif entry.digest is not None and digest_bytes(data) != entry.digest:
        problem = "has other bytes than were saved"
    if problem:
        raise errors.DamagedCheckpointError(
            f"the file {entry.path!r} {problem}", file=entry.path, key=key, root=backend.root
        )
    return data


async def check_file(backend: StorageBackend, key: str, entry: ManifestEntry) -> None:
    """Like `read_checked`, without holding a large file in memory.

    Raises:
        DamagedCheckpointError: It is gone, or differs in size or digest.
    """
    if entry.size <= PIECE_BYTES:
        await read_checked(backend, key, entry)
        return
    where = {"file": entry.path, "key": key, "root": backend.root}
    try:
        if await digest_object(backend, key, entry.size) == entry.digest:
            return
    except errors.ObjectNotFoundError as error:
        message = f"the file {entry.path!r} is missing"
        raise errors.DamagedCheckpointError(message, **where) from error
    raise errors.DamagedCheckpointError(
        f"the file {entry.path!r} has other bytes than were saved", **where
    )


async def open_committed(
    backend: StorageBackend, final: str, *, check_whole: bool = True
) -> CommittedArea:
    """Opens the checkpoint at `final`, after one listing that shows it whole.

    Raises:
        CheckpointNotFoundError: None is committed there; the message says what is.
        IncompleteCheckpointError: Files are missing or short, as after half a copy.
        DamagedCheckpointError: Its manifest is not the one that was committed.
        RecordUnreadableError: A record is there that cannot be read.
    """

    async def opened(area: CommittedArea) -> CommittedArea:
        return area

    return await _consistently(backend, final, opened, check_whole=check_whole)


def open_plain(backend: StorageBackend, prefix: str) -> PlainArea:
    """Opens a folder that has no commit record; no I/O."""
    return PlainArea(backend, prefix)


async def _read_manifest(backend: StorageBackend, prefix: str, record: CommitRecord) -> Manifest:
    key = keys.join(prefix, MANIFEST_FILE)
    where = {"file": MANIFEST_FILE, "key": key, "root": backend.root}
    try:
        data = await backend.get(key)
    except errors.ObjectNotFoundError as error:
        raise errors.IncompleteCheckpointError("the manifest is missing", **where) from error
    if record.manifest_digest is not None and digest_bytes(data) != record.manifest_digest:
        raise errors.DamagedCheckpointError("the manifest is not the one committed", **where)
    try:
        return Manifest.from_bytes(data)
    except MetadataError as error:
        raise errors.DamagedCheckpointError(f"the manifest is damaged: {error}", **where) from error


async def _require_whole(backend: StorageBackend, prefix: str, manifest: Manifest) -> None:
    problems = await _size_problems(backend, prefix, manifest)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise errors.IncompleteCheckpointError(
            f"committed but not whole: {'; '.join(problems[:3])}{more}",
            file=problems[0].split("'")[1],
            key=prefix,
            root=backend.root,
        )


async def require_whole_at(backend: StorageBackend, final: str, prefix: str, attempt: str) -> None:
    """Checks the files of an attempt that is in the trash, wherever its data lies.

    Raises:
        CheckpointNotFoundError: Neither the final's record nor one in `prefix` speaks of it.
        DamagedCheckpointError: Files are missing or short, or the manifest is another.
    """
    record = (await read_record(backend, final)).record
    kept = record.in_trash(attempt) if record is not None else None
    if kept is not None and keys.join(final, kept.data) == prefix:
        record = CommitRecord("committed", attempt, kept.data, kept.manifest_digest)
    else:
        record = (await read_record(backend, prefix)).record
    if record is None or record.attempt != attempt:
        raise errors.CheckpointNotFoundError(
            "it is not in the trash any more", key=final, root=backend.root
        )
    await _require_whole(backend, prefix, await _read_manifest(backend, prefix, record))


async def _size_problems(backend: StorageBackend, prefix: str, manifest: Manifest) -> list[str]:
    sizes = {keys.relative(i.key, prefix): i.size async for i in backend.walk(prefix)}
    problems = []
    for entry in manifest.entries:
        size = sizes.get(entry.path)
        if size is None:
            problems.append(f"the file {entry.path!r} is missing")
        elif size != entry.size:
            problems.append(f"the file {entry.path!r} has {size} bytes, {entry.size} were saved")
    return problems


async def _not_found(
    backend: StorageBackend, final: str, stored: StoredRecord
) -> errors.CheckpointNotFoundError:
    where = {"key": final, "root": backend.root}
    if stored.record is not None and stored.record.state == "trashed":
        return errors.CheckpointDeletedError("the checkpoint here is in the trash", **where)
    if stored.record is not None and stored.record.state == "retired":
        return errors.CheckpointDeletedError("the checkpoint here was deleted", **where)
    above = final
    while above:
        above = keys.parent(above)
        if (await read_record(backend, above)).committed:
            shown = above or backend.root
            return errors.CheckpointNotFoundError(
                f"this is inside the checkpoint {shown!r}: load that one", **where
            )
    if await _has_attempt(backend, final):
        return errors.UnfinishedCheckpointError(
            "a save was begun here and never committed", **where
        )
    if final and (await read_session(backend, final)).begun:
        return errors.UnfinishedCheckpointError(
            "parts of a checkpoint were saved here and not finalized: call partial.finalize",
            **where,
        )
    inside = await _checkpoints_inside(backend, final)
    if inside:
        shown = ", ".join(inside[-5:])
        return errors.CheckpointNotFoundError(
            f"this is a folder of checkpoints, not one of them; it holds {shown}", **where
        )
    listing = await backend.children(final)
    found = sorted(keys.leaf(key) for key in (*listing.prefixes, *(o.key for o in listing.objects)))
    if found:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        return errors.CheckpointNotFoundError(f"this is no checkpoint; it holds {shown}", **where)
    return errors.CheckpointNotFoundError("no checkpoint is here", **where)


async def _has_attempt(backend: StorageBackend, final: str) -> bool:
    if (await occupant(backend, final)).kind == "uncommitted":
        return True
    wanted = keys.leaf(final)
    for prefix in (await backend.children(keys.parent(final))).prefixes:
        found = layout.parse_hidden(keys.leaf(prefix))
        if found is not None and found.leaf == wanted and found.kind == "attempt":
            return True
    return False


async def _checkpoints_inside(backend: StorageBackend, prefix: str) -> list[str]:
    return [entry.name for entry in (await list_committed(backend, prefix)).committed]


@dataclass(frozen=True, slots=True)
class CommittedEntry:
    """One committed checkpoint in a listing."""

    name: str
    final: str
    record: CommitRecord


@dataclass(frozen=True, slots=True)
class CommittedListing:
    """What lies one level below a prefix.

    Attributes:
        committed: Checkpoints, sorted by name.
        unreadable: Names whose record cannot be read, and why.
        others: Names of folders without a committed record (hidden ones left out).
    """

    committed: tuple[CommittedEntry, ...]
    unreadable: tuple[tuple[str, str], ...]
    others: tuple[str, ...]


async def list_committed(backend: StorageBackend, parent: str) -> CommittedListing:
    """Lists what is committed one level below `parent`: one listing, one read per folder."""
    listing = await backend.children(parent)
    return await read_records(
        backend, [p for p in listing.prefixes if not keys.leaf(p).startswith(".")]
    )


async def read_records(backend: StorageBackend, finals: Sequence[str]) -> CommittedListing:
    """Says which of `finals` are committed: one read for each."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def read(final: str) -> StoredRecord | errors.RecordUnreadableError:
        async with limit:
            try:
                return await read_record(backend, final)
            except errors.RecordUnreadableError as error:
                return error

    answers = await asyncio.gather(*(read(final) for final in finals))
    committed, unreadable, others = [], [], []
    for final, answer in zip(finals, answers, strict=True):
        name = keys.leaf(final)
        if isinstance(answer, errors.RecordUnreadableError):
            unreadable.append((name, str(answer)))
        elif answer.committed and answer.record is not None:
            committed.append(CommittedEntry(name, final, answer.record))
        else:
            others.append(name)
    return CommittedListing(tuple(committed), tuple(unreadable), tuple(others))


async def reading(
    backend: StorageBackend,
    final: str,
    body: Callable[[CommittedArea], Awaitable[T]],
    *,
    check_whole: bool = True,
) -> T:
    """Runs `body` on the checkpoint at `final`, all of it on one attempt (rule R9).

    Args:
        backend: Where it is.
        final: The prefix it is known by.
        body: What to do with it.
        check_whole: Look first whether every file of its manifest is there: one listing.

    Raises:
        CheckpointDeletedError: It was deleted while it was read.
        CheckpointChangedError: It was replaced again and again.
        DamagedCheckpointError: Its bytes differ, and the record has not changed.
    """
    return await _consistently(backend, final, body, check_whole=check_whole)


async def _consistently(
    backend: StorageBackend,
    final: str,
    body: Callable[[CommittedArea], Awaitable[T]],
    *,
    check_whole: bool,
) -> T:
    """Opening is part of what is repeated: a replacement may come before the manifest."""
    stored = await read_record(backend, final)
    if not stored.committed:
        raise await _not_found(backend, final, stored)
    for _ in range(_RESTARTS):
        try:
            return await body(await _open(backend, final, stored, check_whole=check_whole))
        except (errors.DamagedCheckpointError, errors.ObjectNotFoundError) as error:
            now = await read_record(backend, final)
            if now.attempt == stored.attempt:
                raise
            if not now.committed:
                raise errors.CheckpointDeletedError(
                    "the checkpoint was deleted while it was read", key=final, root=backend.root
                ) from error
            stored = now
    raise errors.CheckpointChangedError(
        f"the checkpoint was replaced {_RESTARTS} times while it was read",
        key=final,
        root=backend.root,
    )


async def _open(
    backend: StorageBackend, final: str, stored: StoredRecord, *, check_whole: bool
) -> CommittedArea:
    assert stored.record is not None
    prefix = keys.join(final, stored.record.data)
    manifest = await _read_manifest(backend, prefix, stored.record)
    if check_whole:
        await _require_whole(backend, prefix, manifest)
    return CommittedArea(backend, final, stored.record, manifest)


async def unless_changed(
    backend: StorageBackend, final: str, check: Callable[[], Awaitable[T]]
) -> T:
    """Runs a check, whose result is false for damage; again if the checkpoint has changed.

    Raises:
        CheckpointDeletedError: It was deleted meanwhile.
        CheckpointChangedError: It was replaced again and again.
    """
    for _ in range(_RESTARTS):
        before = await read_record(backend, final)
        report = await check()
        now = before if report else await read_record(backend, final)
        if now.attempt == before.attempt and now.committed == before.committed:
            return report
        if not now.committed:
            raise errors.CheckpointDeletedError(
                "the checkpoint was deleted while it was checked", key=final, root=backend.root
            )
    raise errors.CheckpointChangedError(
        f"the checkpoint was replaced {_RESTARTS} times while it was checked",
        key=final,
        root=backend.root,
    )


@dataclass(frozen=True, slots=True)
class FileReport:
    """What a check of all files found."""

    files: int
    problems: tuple[str, ...]


async def verify(backend: StorageBackend, final: str) -> FileReport:
    """Compares every file with the manifest: presence, size, and digest where it has one.

    Raises:
        CheckpointNotFoundError: None is committed there.
    """
    try:
        area = await open_committed(backend, final, check_whole=False)
    except errors.DamagedCheckpointError as error:
        return FileReport(0, (str(error),))
    prefix = keys.join(final, area.record.data)
    problems = await _size_problems(backend, prefix, area.manifest)
    if not problems:
        for entry in area.manifest.entries:
            if entry.digest is None:
                continue
            try:
                await check_file(backend, keys.join(prefix, entry.path), entry)
            except errors.DamagedCheckpointError as error:
                problems.append(str(error))
    return FileReport(len(area.manifest.entries), tuple(problems))
