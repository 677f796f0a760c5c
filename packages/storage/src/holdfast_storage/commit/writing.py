"""One attempt from its beginning to its commit, or to nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from holdfast_metadata import ATTEMPT_FILE, CommitRecord, ManifestEntry
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.heartbeat import heartbeat
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.staging import StagingArea
from holdfast_storage.commit.strategy import CommitStrategy, Transaction

_log = logging.getLogger(__name__)


class Fellows:
    """Other processes that write into the same attempt. This one, by default, has none."""

    async def began(self, txn: Transaction) -> None:
        """Tells them of the attempt."""

    async def gather(self, entries: Sequence[ManifestEntry]) -> Sequence[ManifestEntry]:
        """Waits until they have written and sealed; gives the files of all."""
        return entries

    async def stop(self, error: BaseException) -> None:
        """Tells them that it failed, and waits a while until none of them writes any more."""


ALONE = Fellows()


async def write_attempt(
    backend: StorageBackend,
    final: str,
    write: Callable[[StagingArea], Awaitable[None]],
    *,
    replace: bool = False,
    fellows: Fellows = ALONE,
) -> CommitRecord:
    """Lets `write` fill an attempt, then commits it; any failure leaves nothing.

    Args:
        backend: The store.
        final: The prefix the checkpoint will be known by.
        write: Fills the attempt.
        replace: Whether a checkpoint that is there is replaced.
        fellows: Who else writes into the attempt; they call `take_part`.

    Raises:
        CommitConflictError: A checkpoint is there and `replace` is false, or another writer
            got there first.
        DestinationOccupiedError: Something that is no checkpoint is there.
        CommitUnknownError: The outcome could not be read back; nothing was deleted.
    """
    strategy = await backend.commit_strategy()
    txn = await _begin(strategy, final)
    try:
        area = strategy.area(txn)
        async with heartbeat(backend, txn):
            await fellows.began(txn)
            await write(area)
            entries = await fellows.gather(await strategy.seal(txn, area))
            return await carry_through(strategy.commit(txn, entries, replace=replace))
    except errors.CommitUnknownError:
        raise  # whatever is there may be ours: nothing may be deleted
    except BaseException as error:
        try:
            await carry_through(fellows.stop(error))
            await carry_through(strategy.abort(txn))
        except Exception:  # noqa: BLE001 - the first error is the one to tell; the rest can be swept
            _log.warning("could not clean up after a failed save of %s", final, exc_info=True)
        raise


async def take_part(
    backend: StorageBackend, txn: Transaction, write: Callable[[StagingArea], Awaitable[None]]
) -> tuple[ManifestEntry, ...]:
    """Writes a part of an attempt that another process began, and will commit.

    Returns:
        The files that this process wrote, durable. After a failure, here or later, call
        `withdraw`.
    """
    strategy = await backend.commit_strategy()
    area = strategy.area(txn)
    await write(area)
    return await strategy.seal(txn, area)


async def withdraw(backend: StorageBackend, txn: Transaction) -> None:
    """Clears away, after a failure, what `take_part` wrote when the attempt was gone already.

    Who began an attempt that failed removes it, after a while also if the others are not heard
    of. One that stood still for longer and goes on then writes where nothing is any more; no
    sweep touches that, for it has no mark. Errors are logged only.
    """
    try:
        if await _was_removed(backend, txn):
            await (await backend.commit_strategy()).abort(txn)
    except Exception:  # noqa: BLE001 - the save has failed, and that is what is told
        _log.warning("could not clean up after a failed save of %s", txn.final, exc_info=True)


async def _was_removed(backend: StorageBackend, txn: Transaction) -> bool:
    """Whether an attempt's mark is gone, and files are there."""
    try:
        await backend.stat(keys.join(txn.staging, ATTEMPT_FILE))
    except errors.ObjectNotFoundError:
        async for _ in backend.walk(txn.staging):
            return True
    return False


async def _begin(strategy: CommitStrategy, final: str) -> Transaction:
    """Begins; if cancelled meanwhile, removes the mark that was on its way."""
    beginning = asyncio.ensure_future(strategy.begin(final))
    try:
        return await asyncio.shield(beginning)
    except asyncio.CancelledError:

        async def undo() -> None:
            await strategy.abort(await beginning)

        try:
            await carry_through(undo())
        except Exception:  # noqa: BLE001 - it did not begin, or can be swept
            _log.debug("nothing to clean up after a cancelled save of %s", final, exc_info=True)
        raise
