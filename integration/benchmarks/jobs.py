"""Jobs of one, two and four JAX processes that save and load one tree together."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from integration.benchmarks import contenders as who
from integration.benchmarks.measure import Figure
from integration.multiprocess import job

COUNTS = (1, 2, 4)
_DEVICES = 2
_PATIENCE_S = 1200.0


def jobs(folder: Path, repetitions: int) -> list[Figure]:
    """Each operation takes as long as the slowest process does; all begin at once."""
    return [figure for count in COUNTS for figure in job_of(count, folder, repetitions)]


def job_of(count: int, folder: Path, repetitions: int, scale: int = 1) -> list[Figure]:
    """A job of `count` processes; `scale` makes its trees so much smaller."""
    part = "integration.benchmarks.jobs.measured"
    started = job.start(count, part, str(folder), repetitions, scale, devices=_DEVICES)
    try:
        said = started.results(_PATIENCE_S)
    finally:
        started.end()
    what = "1 process" if count == 1 else f"{count} processes"
    return [
        Figure(f"{what}, {operation}", name, "s", _slowest(name, operation, said))
        for operation in said[0]
        for name in said[0][operation]
    ]


def _slowest(name: str, operation: str, said: list[Any]) -> list[float]:
    """For each repetition what the process took that took longest."""
    at_once = zip(*(each[operation][name] for each in said), strict=True)
    return [max(seconds) for seconds in at_once]


def measured(folder: str, repetitions: int, scale: int) -> dict[str, dict[str, list[float]]]:
    """One process: seconds by operation and contender, one for each counted repetition."""
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    found: dict[str, dict[str, list[float]]] = {}
    for workload, make in TREES.items():
        tree = make(scale)
        for turn in range(repetitions + 1):
            order = [*who.contenders()[:3], raw_shares()]
            for contender in order[turn % 4 :] + order[: turn % 4]:
                path = Path(folder) / f"{workload}-{contender.name.replace(' ', '_')}"
                for operation, seconds in _turn(contender, path, tree).items():
                    values = found.setdefault(f"{workload}, {operation}", {})
                    values.setdefault(contender.name, []).extend([seconds] if turn else [])
    return found


def _turn(contender: who.Contender, path: Path, tree: Any) -> dict[str, float]:
    taken = {"durable save": _timed(lambda: contender.save(path, tree))}
    taken["load"] = _timed(lambda: contender.load(path, tree))
    if contender.save_async is not None:
        later = path.with_name(f"{path.name}-later")
        waits: list[Callable[[], Any]] = []
        begin = contender.save_async
        taken["async save blocks"] = _timed(lambda: waits.append(begin(later, tree)))
        waits[0]()
        _remove(later)
    _remove(path)
    return taken


def _timed(act: Callable[[], Any]) -> float:
    _meet()
    start = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - start
    del result
    return seconds


def _meet() -> None:
    from jax.experimental import multihost_utils

    multihost_utils.sync_global_devices("benchmark")


def _remove(path: Path) -> None:
    import jax

    _meet()
    if jax.process_index() == 0:
        for found in path.parent.glob(f"{path.name}*"):
            who.remove(found)
    _meet()


def raw_shares() -> who.Contender:
    """Each process writes and syncs a file with its shards, and reads it back."""
    import jax

    def mine(tree: Any) -> list[Any]:
        return [
            shard.data
            for leaf in jax.tree.leaves(tree)
            for shard in leaf.addressable_shards
            if shard.replica_id == 0
        ]

    def place(path: Path) -> Path:
        return path.with_name(f"{path.name}-{jax.process_index()}")

    def save(path: Path, tree: Any) -> None:
        who.raw_disk().save(place(path), mine(tree))

    def load(path: Path, tree: Any) -> Any:
        return who.raw_disk().load(place(path), mine(tree))

    return who.Contender("raw disk", save, load)


def _spread(shape: tuple[int, ...], seed: int, *, divided: bool) -> Any:
    """An array over all devices of the job, by rows or whole on each."""
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    mesh = Mesh(np.array(jax.devices(), dtype=object), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x") if divided else PartitionSpec())  # type: ignore[no-untyped-call]
    value = np.random.default_rng(seed).random(shape, np.float32)
    return jax.make_array_from_callback(shape, sharding, lambda index: value[index])


def divided(scale: int = 1) -> dict[str, Any]:
    """4 arrays of 32 MiB, each process having a part."""
    return {f"w{n}": _spread((2048, 4096 // scale), n, divided=True) for n in range(4)}


def many(scale: int = 1) -> dict[str, Any]:
    """2,000 arrays of 512 bytes, every other one on all devices whole."""
    return {f"leaf_{n}": _spread((128,), n, divided=n % 2 == 0) for n in range(2000 // scale)}


TREES: dict[str, Callable[[int], Any]] = {"divided": divided, "many": many}
