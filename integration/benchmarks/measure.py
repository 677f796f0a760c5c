"""The measurements: interleaved repetitions, the first dropped, medians and spread."""

from __future__ import annotations

import gc
import os
import shutil
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


def timed(act: Callable[[], Any], done: Callable[[Any], Any] | None = None) -> float:
    """Seconds that a call takes, after the disk has come to rest.

    Freeing what it returns takes time as well, and is not counted.

    Args:
        act: What is measured.
        done: Is given what `act` returned, outside of the measured time.
    """
    gc.collect()
    os.sync()
    start = time.perf_counter()
    result = act()
    seconds = time.perf_counter() - start
    if done is not None:
        done(result)
    return seconds


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
            contender.load(path, tree)  # warms the page cache, and memory the machine had lent out
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
            begin = contender.save_async
            seconds = timed(lambda b=begin, p=path: b(p, tree), lambda wait: wait())
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
tiny, little = path.with_name("tiny"), {{"x": jax.numpy.ones(3)}}
who.remove(tiny)
contender.save(tiny, little)  # imports and thread pools are no part of what a save takes
contender.load(tiny, little)
who.remove(tiny)
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

    In a fresh process each, after a tiny save and load; mapped pages are included. On the CPU
    the tree itself is host memory: a load that makes nothing besides it has the figure 1.
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
    """Opening runs of 1,000 and of 10,000 steps and finding the latest."""
    return [*_opening(folder, repetitions, 1000), *_opening(folder, repetitions, 10_000)]


def _opening(folder: Path, repetitions: int, steps: int) -> list[Figure]:
    import jax.numpy as jnp
    from orbax.checkpoint import v1 as ocp

    import holdfast as hf

    contenders = {"holdfast": hf.training.Checkpointer, "orbax": ocp.training.Checkpointer}
    runs = {name: folder / f"run-{name}-{steps}" for name in contenders}
    for name, make in contenders.items():
        with make(runs[name]) as run:
            run.save(0, {"w": jnp.ones(2)})
        for step in range(1, steps):  # saving them all would take Orbax minutes
            shutil.copytree(runs[name] / "0", runs[name] / str(step), copy_function=os.link)

    def open_latest(name: str) -> Any:
        opened = contenders[name](runs[name])
        assert opened.latest.step == steps - 1
        return opened

    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(repetitions + 1):
        for name in contenders:
            seconds = timed(lambda n=name: open_latest(n), lambda opened: opened.close())
            if turn:
                seen[name].append(seconds)
    for path in runs.values():
        who.remove(path)
    return [Figure(f"open a run of {steps:,} steps", name, "s", v) for name, v in seen.items()]


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
