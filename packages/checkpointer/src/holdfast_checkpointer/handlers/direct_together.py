"""A handler's save into a plain folder, by all processes of a job.

They meet once, in the save: when it returns, all have written, and the primary has merged what
they wrote. So `finalize` asks nobody, and may be called by all processes or by one.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping

from holdfast_checkpointer.concurrency import run_all
from holdfast_checkpointer.engine.together import JointSave, operation_for
from holdfast_checkpointer.handlers.base import Item
from holdfast_checkpointer.handlers.foreign.folders import UNFINALIZED
from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context
from holdfast_storage import DirectArea, StorageBackend, keys

_PROBE = ".holdfast-seen-"


async def save_together(
    backend: StorageBackend,
    key: str,
    items: Mapping[str, Item],
    *,
    context: Context,
    call: Call | None,
    look: Callable[[], Awaitable[None]] | None = None,
    unfinished: Collection[str] = (),
) -> None:
    """Writes items into a folder, in every process of the job.

    Args:
        backend: The storage.
        key: The folder.
        items: What this process has, by folder below it; "" is the folder itself.
        context: Options.
        call: Which call of this process it is.
        look: Refuses, on the primary, what is in the folder; None takes any.
        unfinished: Items that stay marked until they are finalized.

    Raises:
        DisagreementError: The processes do not save the same; nothing was written.
        StorageNotSharedError: They do not see each other's files; no array was written.
        RemoteProcessError: Another process failed.
    """
    job = Membership.of(context.multiprocessing)
    area = DirectArea(backend, key)
    deadline_s = context.multiprocessing.deadline_secs
    try:
        async with operation_for(job, deadline_s, area.label, call) as operation:
            save = JointSave(operation, backend, key, items, replace=False)
            await save.agree()
            await _begin(save, area, look, unfinished)
            operation.enter("the write")
            records = await operation.until_failure(save.write_items(area))
            await area.sync()
            said = json.dumps(save.encode(records)).encode()
            gathered = await operation.gather("the files", said)
            if gathered is None:
                await operation.conclude()
                return
            found = {name: [record] for name, record in records.items()}
            for process in sorted(gathered.keys() - {operation.me}):
                for name, record in save.decode(json.loads(gathered[process])).items():
                    found[name].append(record)
            operation.enter("the merge")
            await save.finish(area, found)
            await area.sync()
            await operation.conclude(b"")
    finally:
        await run_all(item.staged.discard() for item in items.values())


async def _begin(
    save: JointSave,
    area: DirectArea,
    look: Callable[[], Awaitable[None]] | None,
    unfinished: Collection[str],
) -> None:
    """Marks items as unfinished, on the primary, and makes sure that all see what it writes."""
    operation = save.operation
    token = uuid.uuid4().hex.encode()
    if operation.is_primary:
        operation.enter("the look at the folder")
        if look is not None:
            await look()
        await run_all(area.put(keys.join(name, UNFINALIZED), token) for name in unfinished)
        if not unfinished:
            await area.put(_PROBE + token.decode(), token)
    token = await operation.broadcast("the folder", token)
    probe = _PROBE + token.decode()
    shown = keys.join(min(unfinished), UNFINALIZED) if unfinished else probe
    try:
        await save.show_storage(keys.join(save.final, shown), lambda data: data == token)
    finally:
        if operation.is_primary and not unfinished:
            await area.delete(probe)
