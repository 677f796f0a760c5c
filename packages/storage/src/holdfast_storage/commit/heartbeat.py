"""Keeping an attempt's mark fresh while it is written, on a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import threading
from collections.abc import AsyncIterator

from holdfast_metadata import ATTEMPT_FILE, AttemptMark
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit.rename import RenameCommit
from holdfast_storage.commit.shield import carry_through
from holdfast_storage.commit.strategy import Transaction
from holdfast_storage.values import IfVersion

_log = logging.getLogger(__name__)
INTERVAL_S = 30.0


@contextlib.asynccontextmanager
async def heartbeat(
    backend: StorageBackend, txn: Transaction, *, interval_s: float = INTERVAL_S
) -> AsyncIterator[None]:
    """Refreshes the attempt's mark until the block is left.

    A beat never brings back a mark that a sweep removed, and a beat that fails is logged:
    it never fails the save, which asks the record in the end.
    """
    stop = threading.Event()
    thread = threading.Thread(
        target=_serve,
        args=(backend, txn, interval_s, stop),
        name=f"holdfast-heartbeat-{txn.attempt[:8]}",
        daemon=True,
    )
    try:
        thread.start()
    except RuntimeError:  # the interpreter is ending and waits for this save
        _log.debug("no heartbeat for %s: no thread can be started any more", txn.staging)
        yield
        return
    try:
        yield
    finally:
        stop.set()
        # A beat under way ends first: it must not touch a staging that abort deletes. Nor may
        # a cancellation that comes now hide a commit that came before.
        await carry_through(asyncio.to_thread(thread.join))


def _serve(
    backend: StorageBackend, txn: Transaction, interval_s: float, stop: threading.Event
) -> None:
    with asyncio.Runner() as runner:
        while not stop.wait(interval_s):
            try:
                runner.run(beat(backend, txn))
            except errors.ObjectNotFoundError:
                _log.warning("the attempt %s was removed by another process", txn.staging)
                break
            except Exception:  # noqa: BLE001 - a beat must never take the save down
                _log.warning("could not refresh the mark of %s", txn.staging, exc_info=True)
        runner.run(backend.release())  # the connections of this thread's loop


async def beat(backend: StorageBackend, txn: Transaction) -> None:
    """Refreshes the mark once.

    Raises:
        ObjectNotFoundError: The mark is gone; it was not brought back.
    """
    key = keys.join(txn.staging, ATTEMPT_FILE)
    version = (await backend.stat(key)).version
    mark = AttemptMark.from_bytes(await backend.get(key))
    fresh = dataclasses.replace(mark, beat=mark.beat + 1).to_bytes()
    if txn.strategy == RenameCommit.name:
        # Fencing moves the folder away, and without it this put fails.
        await backend.put(key, fresh, durable=False, parents=False)
        return
    try:
        await backend.put(key, fresh, condition=IfVersion(version))
    except errors.PreconditionFailedError as error:
        raise errors.ObjectNotFoundError(
            "the mark was removed", key=key, root=backend.root
        ) from error
