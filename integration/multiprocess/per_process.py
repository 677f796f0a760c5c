"""What jobs do with items of which each process has its own: iterators and users' handlers."""

from __future__ import annotations

import json
from typing import Any

import jax
import numpy as np

from integration.multiprocess.parts import global_array, mesh_of, outcome


class Iterator:
    """Counts; saves itself under a name, by default one of its process's own."""

    def __init__(self, at: int, name: str = "") -> None:
        self.at = at
        self.name = name or f"process_{jax.process_index()}.json"

    async def save(self, directory: Any) -> Any:
        at = self.at

        async def write() -> None:
            path = await directory.await_creation()
            (path / self.name).write_text(json.dumps(at))

        return write()

    async def load(self, directory: Any) -> Any:
        async def read() -> None:
            self.at = json.loads((directory / self.name).read_text())

        return read()


class Resized(Iterator):
    """Knows what to do with the states of other processes."""

    async def load_from_processes(self, directory: Any, processes: Any) -> Any:
        async def read() -> None:
            found = [json.loads((directory / f"process_{p}.json").read_text()) for p in processes]
            self.at = sum(found)

        return read()


def save_iterators(folder: str) -> Any:
    """Saves an iterator of each process beside a tree, then some that share a file's name."""
    import grain.python as grain

    import holdfast as hf

    me = jax.process_index()
    w = global_array(np.arange(8.0), mesh_of([jax.device_count()]), "x")
    data = iter(grain.MapDataset.range(100)[me :: jax.process_count()].to_iter_dataset())
    for _ in range(3 + me):
        next(data)
    items = {"it": Iterator(10 + me), "grain": data, "state": {"w": w}}
    response = hf.save_checkpointables_async(f"{folder}/own", items)
    items["it"].at = 99  # after the snapshot
    expected = next(data)
    response.result()
    fresh = iter(grain.MapDataset.range(100)[me :: jax.process_count()].to_iter_dataset())
    again = hf.load_checkpointables(f"{folder}/own", {"it": Iterator(0), "grain": fresh})
    same, other = Iterator(5, "state.json"), Iterator(me, "state.json")
    return {
        "at": again["it"].at,
        "goes on": next(fresh) == expected,
        "same": outcome(hf.save_checkpointables, f"{folder}/same", {"it": same}),
        "other": outcome(hf.save_checkpointables, f"{folder}/other", {"it": other}),
    }


def load_iterators(folder: str) -> Any:
    """Loads them in a job of another size."""
    import holdfast as hf

    def load(target: Iterator) -> int:
        at: int = hf.load_checkpointables(f"{folder}/own", {"it": target})["it"].at
        return at

    return {"refused": outcome(load, Iterator(0)), "divided": outcome(load, Resized(0))}
