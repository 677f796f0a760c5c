"""The measurements: interleaved repetitions, the first dropped, medians and spread."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.benchmarks import contenders as who
from integration.benchmarks import workloads


@dataclass(frozen=True)
class Figure:
    """One measured thing of one contender.

    Attributes:
        what: Workload and operation.
        contender: Who.
        unit: s, MB or such.
        values: One per counted repetition.
    """

    what: str
    contender: str
    unit: str
    values: list[float]

    @property
    def median(self) -> float:
        """The middle of the values."""
        return statistics.median(self.values)


def timed(act: Callable[[], Any]) -> float:
    """Seconds that a call takes, after the disk has come to rest."""
    gc.collect()
    os.sync()
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def trees(workload: str, folder: Path, repetitions: int) -> list[Figure]:
    """Durable save, warm load and cold load of one tree."""
    tree = workloads.TREES[workload]()
    seen: dict[tuple[str, str], list[float]] = {}
    for turn in range(repetitions + 1):
        order = who.contenders()
        for contender in order[turn % len(order) :] + order[: turn % len(order)]:
            path = folder / contender.name.replace(" ", "_")
            who.remove(path)
            taken = {"save": timed(lambda c=contender, p=path: c.save(p, tree))}
            contender.load(path, tree)  # warms the page cache for everybody
            taken["warm load"] = timed(lambda c=contender, p=path: c.load(p, tree))
            who.forget_cached(path)
            taken["cold load"] = timed(lambda c=contender, p=path: c.load(p, tree))
            who.remove(path)
            if turn:
                for operation, seconds in taken.items():
                    seen.setdefault((operation, contender.name), []).append(seconds)
    return [Figure(f"{workload} {op}", name, "s", values) for (op, name), values in seen.items()]


def blocking(folder: Path, repetitions: int) -> list[Figure]:
    """How long an asynchronous save of `llm` holds up training."""
    tree = workloads.llm()
    seen: dict[str, list[float]] = {}
    for turn in range(repetitions + 1):
        for contender in who.contenders():
            if contender.save_async is None:
                continue
            path = folder / contender.name.replace(" ", "_")
            who.remove(path)
            waits: list[Callable[[], Any]] = []
            begin = contender.save_async
            seconds = timed(lambda b=begin, p=path, w=waits: w.append(b(p, tree)))
            waits[0]()
            who.remove(path)
            if turn:
                seen.setdefault(contender.name, []).append(seconds)
    return [Figure("async save blocks (llm)", name, "s", v) for name, v in seen.items()]


_PEAK = """
import pathlib, sys
sys.path.insert(0, {root!r})
import jax
from integration.benchmarks import contenders as who, workloads
contender = next(c for c in who.contenders() if c.name == {name!r})
path = pathlib.Path({path!r})
jax.block_until_ready(jax.numpy.ones(3))
tree = workloads.big() if {operation!r} == "save" else workloads.abstract_big()
def status(field):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(next(l for l in text.splitlines() if l.startswith(field)).split()[1]) * 1024
pathlib.Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
kept = getattr(contender, {operation!r})(path, tree)
print((status("VmHWM") - before) / (512 << 20))
"""


def peak(folder: Path, repetitions: int) -> list[Figure]:
    """Growth of VmHWM while `big` is saved and loaded, over the size of the tree.

    In a fresh process each; mapped pages are included. On the CPU the tree itself is host
    memory: a load that makes nothing besides it has the figure 1.
    """
    root = str(Path(__file__).resolve().parents[2])
    seen: dict[tuple[str, str], list[float]] = {}
    for _ in range(max(1, repetitions // 3)):
        for contender in who.contenders()[:3]:
            path = folder / contender.name.replace(" ", "_")
            who.remove(path)
            for operation in ("save", "load"):
                script = _PEAK.format(
                    root=root, name=contender.name, path=str(path), operation=operation
                )
                done = subprocess.run(
                    [sys.executable, "-c", script], capture_output=True, text=True, check=True
                )
                key = (f"peak memory over tree, {operation} (big)", contender.name)
                seen.setdefault(key, []).append(float(done.stdout.split()[-1]))
            who.remove(path)
    return [Figure(what, name, "x tree", values) for (what, name), values in seen.items()]


def opening(folder: Path, repetitions: int) -> list[Figure]:
    """Opening a run of 1,000 steps and finding the latest."""
    import jax.numpy as jnp
    from orbax.checkpoint import v1 as ocp

    import holdfast as hf

    tree = {"w": jnp.ones(2)}
    places = {"holdfast": folder / "run-holdfast", "orbax": folder / "run-orbax"}
    with hf.training.Checkpointer(places["holdfast"]) as checkpointer:
        for step in range(1000):
            checkpointer.save(step, tree, force=True)
    with ocp.training.Checkpointer(places["orbax"]) as checkpointer:
        for step in range(1000):
            checkpointer.save(step, tree, force=True)

    def ours() -> None:
        with hf.training.Checkpointer(places["holdfast"]) as opened:
            assert opened.latest.step == 999

    def theirs() -> None:
        with ocp.training.Checkpointer(places["orbax"]) as opened:
            assert opened.latest.step == 999

    seen: dict[str, list[float]] = {"holdfast": [], "orbax": []}
    for turn in range(repetitions + 1):
        for name, act in (("holdfast", ours), ("orbax", theirs)):
            seconds = timed(act)
            if turn:
                seen[name].append(seconds)
    for path in places.values():
        who.remove(path)
    return [Figure("open a run of 1,000 steps", name, "s", v) for name, v in seen.items()]


def importing(folder: Path, repetitions: int) -> list[Figure]:
    """Import time in a fresh interpreter, beyond that of JAX."""
    scripts = {
        "holdfast": "import holdfast as hf; hf.save, hf.training.Checkpointer",
        "orbax": "from orbax.checkpoint import v1 as ocp; ocp.save, ocp.training.Checkpointer",
    }
    seen: dict[str, list[float]] = {name: [] for name in scripts}
    for turn in range(repetitions + 1):
        for name, script in scripts.items():
            clock = "time.perf_counter()"
            timer = f"import jax, time; t = {clock}; {script}; print({clock} - t)"
            done = subprocess.run(
                [sys.executable, "-c", timer], capture_output=True, text=True, check=True
            )
            if turn:
                seen[name].append(float(done.stdout.split()[-1]))
    return [Figure("import, beyond jax", name, "s", v) for name, v in seen.items()]


MEASUREMENTS: dict[str, Callable[[Path, int], list[Figure]]] = {
    **{
        name: (lambda folder, repetitions, n=name: trees(n, folder, repetitions))
        for name in workloads.TREES
    },
    "async": blocking,
    "memory": peak,
    "open": opening,
    "import": importing,
}
