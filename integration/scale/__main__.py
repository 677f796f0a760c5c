"""Prints the counts: python -m integration.scale 10 100 1000 10000."""

from __future__ import annotations

import asyncio
import sys

from integration.scale import model


async def main(sizes: list[int]) -> None:
    """Saves and loads in jobs of these sizes."""
    for size in sizes:
        saved, store = await model.save(size)
        loaded = await model.load(size, store)
        for what, counts in (("save", saved), ("load, a sample", loaded)):
            print(f"{what} by {size}: {_told(counts)}; {counts.seconds:.1f} s", flush=True)


def _told(counts: model.Counts) -> str:
    messages, requests = sum(counts.messages.values()), sum(counts.requests.values())
    each = counts.processes
    return (
        f"{messages} messages ({messages / each:.2f} each) {dict(counts.messages)}; "
        f"{requests} requests ({requests / each:.2f} each) {counts.requests}"
    )


asyncio.run(main([int(size) for size in sys.argv[1:]] or [10, 100, 1000]))
