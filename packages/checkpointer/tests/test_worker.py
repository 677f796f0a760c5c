"""The thread in which a handler's background work runs."""

import asyncio
import threading

import pytest

from holdfast_checkpointer.handlers.foreign.calls import Worker


async def test_what_is_made_while_its_caller_gives_up_is_undone():
    worker, begun, go_on = Worker(), threading.Event(), threading.Event()
    there = set()

    def make():
        begun.set()
        go_on.wait()
        there.add("spool")
        return "spool"

    making = asyncio.create_task(worker.make(make, there.remove))
    await asyncio.to_thread(begun.wait)
    making.cancel()
    await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert there == set()
    assert await worker.make(lambda: "kept", there.remove) == "kept"
    worker.end()
