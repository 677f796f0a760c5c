"""Making sure that no earlier holder decides anything after a takeover.

An earlier holder may be paused anywhere. Either it asks for its lease after the new epoch
was made, and stops; or what it is about to decide was announced before that, and is found here:
an attempt by its mark, a removal by `_collecting/` or by the folder it moved the step to.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from holdfast_metadata import (
    ATTEMPT_FILE,
    COLLECTING_DIR,
    COMMIT_FILE,
    LEASE_FIELD,
    AttemptMark,
    Collecting,
    CommitRecord,
    MetadataError,
    epoch_of,
)
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import CommitStrategy, RenameCommit, layout, read_record
from holdfast_storage.commit.rename import finish_leaving, restore_leaving

_log = logging.getLogger(__name__)
_AT_ONCE = 64
_TRIES = 20


async def fence_older(backend: StorageBackend, epoch: int) -> None:
    """Fences every attempt and undecided removal of an epoch before `epoch`, however young.

    Deletes nothing: a sweep does. Attempts without an epoch, of free functions, are let be.
    """
    await _Fencing(backend, await backend.commit_strategy(), epoch).run()


async def settle_leaving(backend: StorageBackend, epoch: int) -> None:
    """Puts back what an earlier holder moved out after it had been succeeded."""
    listing = await backend.children("")
    for prefix in listing.prefixes:
        found = layout.parse_hidden(keys.leaf(prefix))
        if found is not None and found.kind == "leaving" and found.epoch < epoch:
            await restore_leaving(backend, prefix, found.leaf)


class _Fencing:
    def __init__(self, backend: StorageBackend, strategy: CommitStrategy, epoch: int) -> None:
        self._backend = backend
        self._strategy = strategy
        self._epoch = epoch
        self._limit = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        await self._fence_removals()
        listing = await self._backend.children("")
        await asyncio.gather(*(self._look_at(prefix) for prefix in listing.prefixes))

    async def _look_at(self, prefix: str) -> None:
        name = keys.leaf(prefix)
        hidden = layout.parse_hidden(name)
        async with self._limit:
            if hidden is not None and hidden.kind == "leaving":
                if hidden.epoch < self._epoch:
                    await finish_leaving(self._backend, prefix, hidden)
            elif hidden is not None and hidden.kind == "attempt":
                await self._fence_if_older(prefix, hidden.leaf, hidden.attempt)
            elif not name.startswith((".", "_")):
                await self._look_inside(prefix)

    async def _look_inside(self, final: str) -> None:
        there = await self._backend.children(final)
        inner = [p for p in there.prefixes if keys.leaf(p).startswith(layout.INNER_PREFIX)]
        if not inner:
            return
        try:
            stored = await read_record(self._backend, final)
        except errors.RecordUnreadableError:
            return  # nothing can be committed there
        for prefix in inner:
            attempt = keys.leaf(prefix).removeprefix(layout.INNER_PREFIX)
            if attempt != stored.attempt and attempt not in stored.dead:
                await self._fence_if_older(prefix, final, attempt)

    async def _fence_if_older(self, staging: str, final: str, attempt: str) -> None:
        try:
            data = await self._backend.get(keys.join(staging, ATTEMPT_FILE))
            made = epoch_of(AttemptMark.from_bytes(data, source=staging))
        except errors.ObjectNotFoundError:
            # It has moved inside its final, or is gone. A rename has one source.
            inside = layout.inner(final, attempt)
            if staging != inside:
                await self._fence_if_older(inside, final, attempt)
            return
        except MetadataError as error:
            _log.warning("%s is left alone: %s", staging, error)
            return
        if made is not None and made < self._epoch:
            await self._strategy.fence(final, attempt)

    async def _fence_removals(self) -> None:
        """Changes the record of each step that an earlier holder may be about to un-commit.

        Its conditional put then fails, and asks for the lease again.
        """
        listing = await self._backend.children(COLLECTING_DIR)
        for info in listing.objects:
            try:
                data = await self._backend.get(info.key)
            except errors.ObjectNotFoundError:
                continue
            if not data:  # of whom, and of which step, there was no room to say
                await self._touch_all()
                continue
            said = Collecting.from_bytes(data, source=info.key)
            made = epoch_of(said.by)
            if made is not None and made < self._epoch:
                await asyncio.gather(*(self._touch(name) for name in said.names))
                await self._backend.delete(info.key)

    async def _touch_all(self) -> None:
        listing = await self._backend.children("")
        names = [keys.leaf(prefix) for prefix in listing.prefixes]

        async def touch(name: str) -> None:
            async with self._limit:
                await self._touch(name)

        await asyncio.gather(*(touch(name) for name in names if name[0] not in "._"))

    def _goes_by_rename(self, record: CommitRecord) -> bool:
        return self._strategy.name == RenameCommit.name and not record.data

    async def _touch(self, final: str) -> None:
        for _ in range(_TRIES):
            try:
                stored = await read_record(self._backend, final)
            except errors.RecordUnreadableError:
                return
            record = stored.record
            if record is None or not record.committed or self._goes_by_rename(record):
                return  # decided already, or not by its record
            new = dataclasses.replace(record, extra={**record.extra, LEASE_FIELD: self._epoch})
            key = keys.join(final, COMMIT_FILE)
            try:
                await self._backend.put(
                    key, new.to_bytes(), condition=stored.unchanged, parents=False
                )
            except (errors.PreconditionFailedError, errors.TransientStorageError):
                continue
            except (errors.ObjectNotFoundError, errors.UnsupportedOperationError):
                return
            return
        raise errors.TransientStorageError(
            "the record changed again and again", key=final, root=self._backend.root
        )
