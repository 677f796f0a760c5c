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


class Whole:
    """A grain iterator of a part of the data, which may be resumed by other processes."""

    def __init__(self) -> None:
        import grain.python as grain

        me, count = jax.process_index(), jax.process_count()
        self.data = iter(grain.MapDataset.range(100)[me::count].to_iter_dataset())

    async def save(self, directory: Any) -> Any:
        return await self.data.save(directory)

    async def load(self, directory: Any) -> Any:
        return await self.data.load(directory)

    async def load_from_processes(self, directory: Any, processes: Any) -> Any:
        async def read() -> None:
            names = [f"process_{p}-of-{len(processes)}.json" for p in processes]
            states = [json.loads((directory / name).read_text()) for name in names]
            seen = sum(state["next_index"] for state in states)
            self.data.set_state({**states[0], "next_index": seen // jax.process_count()})

        return read()


def runs_with_grain(folder: str) -> Any:
    """Runs of both interfaces with grain's iterators; Orbax loads ours, and the reverse."""
    import grain.python as grain
    from orbax.checkpoint import v1 as ocp

    import holdfast as hf

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    me = jax.process_index()
    state = {"w": global_array(np.arange(8.0), mesh_of([jax.device_count()]), "x")}
    whole = Whole()
    for _ in range(8):
        next(whole.data)
    items = {"data": whole.data, "state": state}
    with hf.training.Checkpointer(f"{folder}/v1") as run:
        run.save_checkpointables(1, items)
        run.save_checkpointables(2, {"data": whole, "state": state})
    composite = hf.args.Composite(
        data=grain.PyGrainCheckpointSave(whole.data), state=hf.args.StandardSave(state)
    )
    with hf.CheckpointManager(f"{folder}/v0") as manager:
        manager.save(1, args=composite)
        manager.wait_until_finished()
    ocp.save_checkpointables(f"{folder}/orbax", items)
    expected = next(whole.data)

    def goes_on(load: Any) -> bool:
        fresh = Whole()
        load(fresh.data)
        return bool(next(fresh.data) == expected)

    def from_run(data: Any) -> None:
        with hf.training.Checkpointer(f"{folder}/v1") as run:
            run.load_checkpointables(1, {"data": data, "state": state})

    def from_manager(data: Any) -> None:
        asked = hf.args.Composite(
            data=grain.PyGrainCheckpointRestore(data), state=hf.args.StandardRestore(state)
        )
        with hf.CheckpointManager(f"{folder}/v0") as manager:
            manager.restore(1, args=asked)

    def one_lacks_it() -> None:
        hf.save_checkpointables(f"{folder}/lacks", items if me == 0 else {"state": state})

    def by_orbax(data: Any) -> None:
        ocp.load_checkpointables(f"{folder}/v1/1", {"data": data})

    def from_orbax(data: Any) -> None:
        hf.load_checkpointables(f"{folder}/orbax", {"data": data, "state": state})

    ways = {
        "run": from_run,
        "manager": from_manager,
        "by orbax": by_orbax,
        "from orbax": from_orbax,
    }
    return {
        "goes on": {name: outcome(goes_on, load) for name, load in ways.items()},
        "lacks": outcome(one_lacks_it),
    }


def resume_with_grain(folder: str, step: int) -> Any:
    """Resumes a run with other processes, and saves the next step."""
    import holdfast as hf

    state = {"w": global_array(np.arange(8.0), mesh_of([jax.device_count()]), "x")}
    whole = Whole()
    with hf.training.Checkpointer(f"{folder}/v1") as run:
        refused = outcome(
            lambda: str(run.load_checkpointables(step, {"data": whole.data, "state": state}))
        )
        untouched = whole.data.get_state()["next_index"]
        run.load_checkpointables(step, {"data": whole, "state": state})
        at = whole.data.get_state()["next_index"]
        run.save_checkpointables(step + 1, {"data": whole, "state": state})
    return {"refused": refused, "untouched": untouched, "at": at}


def load_iterators(folder: str) -> Any:
    """Loads them in a job of another size."""
    import holdfast as hf

    def load(target: Iterator) -> int:
        at: int = hf.load_checkpointables(f"{folder}/own", {"it": target})["it"].at
        return at

    return {"refused": outcome(load, Iterator(0)), "divided": outcome(load, Resized(0))}
