"""What the processes of the jobs under test do; each is named in `job.start`."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import jax

from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_storage.loop import get_loop


def coordinate(culprit: int | None) -> Any:
    """Agrees with the others; process `culprit` fails where it alone works."""
    me = jax_service.process_index()
    coordinator = Coordinator(
        jax_service.JaxService(), me=me, processes=range(jax.process_count()), primary=0
    )

    async def part() -> dict[str, Any]:
        async with coordinator.operation("save somewhere") as operation:
            verdict = await operation.vote(
                "trees", b"%d" % me, lambda b: b",".join(b[p] for p in sorted(b))
            )
            operation.enter("the write")
            if me == culprit:
                raise OSError("the disk of params.w is full")
            if culprit is not None:
                await operation.until_failure(asyncio.sleep(60))
            await operation.barrier("written")
            ended = await operation.conclude(b"done" if operation.is_primary else None)
            return {"verdict": verdict.decode(), "ended": ended.decode()}

    began = time.monotonic()
    try:
        found = get_loop().run(part())
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    found["seconds"] = time.monotonic() - began
    time.sleep(0.5 if me == 0 else 0.0)
    left = get_loop().run(jax_service.JaxService().list("holdfast")) if me == 0 else {}
    return {**found, "left": sorted(left)}
