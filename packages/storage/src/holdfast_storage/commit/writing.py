"""One attempt from its beginning to its commit, or to nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from holdfast_metadata import CommitRecord
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.heartbeat import heartbeat
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.staging import StagingArea
from holdfast_storage.commit.strategy import CommitStrategy, Transaction

_log = logging.getLogger(__name__)


async def write_attempt(
    backend: StorageBackend,
    final: str,
    write: Callable[[StagingArea], Awaitable[None]],
    *,
    replace: bool = False,
) -> CommitRecord:
    """Lets `write` fill an attempt, then commits it; any failure leaves nothing.

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
            await write(area)
            entries = await strategy.seal(txn, area)
            return await carry_through(strategy.commit(txn, entries, replace=replace))
    except errors.CommitUnknownError:
        raise  # whatever is there may be ours: nothing may be deleted
    except BaseException:
        try:
            await carry_through(strategy.abort(txn))
        except Exception:  # noqa: BLE001 - the first error is the one to tell; the rest can be swept
            _log.warning("could not clean up after a failed save of %s", final, exc_info=True)
        raise


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
