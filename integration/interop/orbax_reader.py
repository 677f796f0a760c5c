"""Loads checkpoints with Orbax alone, in a process of its own, and says what differed.

    python -m integration.interop.orbax_reader JOBS.json REPORT.json

A job is `{"id", "how", "path", "case"}`: `how` names one of `READERS`, `case` one of
`trees.CASES`. The report gives for each id the differences in words, none if the checkpoint
was read as it should be. One process reads many: starting JAX and Orbax costs seconds.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import orbax.checkpoint as ocp0
from orbax.checkpoint import v1 as ocp

from integration.interop.trees import CASES, Case, blank, differences, elsewhere

Reader = Callable[[Path, Case], list[str]]


def v1(path: Path, case: Case) -> list[str]:
    return differences(ocp.load(path), case.plain)


def v1_target(path: Path, case: Case) -> list[str]:
    return differences(ocp.load(path, blank(case.tree)), case.expected)


def v1_elsewhere(path: Path, case: Case) -> list[str]:
    target = blank(elsewhere(case.tree))
    return differences(ocp.load(path, target), elsewhere(case.expected))


def v1_checkpointables(path: Path, case: Case) -> list[str]:
    found = ocp.load_checkpointables(path)
    return differences(found, {"state": case.plain})


def v1_metadata(path: Path, case: Case) -> list[str]:
    """What Orbax says of every array, without reading one."""
    found = ocp.metadata(path).metadata
    return _describes(found, case)


def v0_pytree(path: Path, case: Case) -> list[str]:
    with ocp0.PyTreeCheckpointer() as checkpointer:
        return differences(checkpointer.restore(path), case.plain)


def v0_pytree_target(path: Path, case: Case) -> list[str]:
    target = blank(case.tree)
    restore_args = ocp0.checkpoint_utils.construct_restore_args(target)
    with ocp0.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.restore(path, item=target, restore_args=restore_args)
        return differences(found, case.expected)


def v0_standard(path: Path, case: Case) -> list[str]:
    with ocp0.StandardCheckpointer() as checkpointer:
        return differences(checkpointer.restore(path), case.plain)


def v0_standard_target(path: Path, case: Case) -> list[str]:
    with ocp0.StandardCheckpointer() as checkpointer:
        return differences(checkpointer.restore(path, blank(case.tree)), case.expected)


def v0_metadata(path: Path, case: Case) -> list[str]:
    with ocp0.PyTreeCheckpointer() as checkpointer:
        return _describes(checkpointer.metadata(path).item_metadata.tree, case)


def composite(path: Path, case: Case) -> list[str]:
    """A composite handler that knows nothing finds the handlers by what the file names."""
    with ocp0.Checkpointer(ocp0.CompositeCheckpointHandler()) as checkpointer:
        return differences(checkpointer.restore(path).state, case.plain)


def composite_args(path: Path, case: Case) -> list[str]:
    target = blank(case.tree)
    how = ocp0.checkpoint_utils.construct_restore_args(target)
    args = ocp0.args.Composite(state=ocp0.args.PyTreeRestore(target, restore_args=how))
    with ocp0.Checkpointer(ocp0.CompositeCheckpointHandler()) as checkpointer:
        return differences(checkpointer.restore(path, args=args).state, case.expected)


def training(path: Path, case: Case) -> list[str]:
    with ocp.training.Checkpointer(path) as run:
        problems = differences([c.step for c in run.checkpoints], [0, 2, 10])
        problems += differences(run.latest.step, 10)
        problems += differences(run.metadata(2).metrics, {"loss": 0.5})
        problems += differences(run.metadata(2).custom_metadata, {"of": "step 2"})
        problems += differences(run.load(), case.plain)
        return problems + differences(run.load(2, blank(case.tree)), case.expected)


def manager(path: Path, case: Case) -> list[str]:
    options = ocp0.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min")
    with ocp0.CheckpointManager(path, options=options) as run:
        problems = differences(list(run.all_steps()), [0, 2, 10])
        problems += differences((run.latest_step(), run.best_step()), (10, 2))
        problems += differences(run.metrics(2), {"loss": 0.5})
        problems += differences(run.metadata().custom_metadata, {"of": "run"})
        problems += differences(run.metadata(2).custom_metadata, {"of": "step 2"})
        restored = run.restore(2)
        problems += differences(restored.metrics, {"loss": 0.5})
        return problems + differences(restored.state, case.plain)


def manager_args(path: Path, case: Case) -> list[str]:
    args = ocp0.args.Composite(state=ocp0.args.StandardRestore(blank(case.tree)))
    with ocp0.CheckpointManager(path) as run:
        return differences(run.restore(10, args=args).state, case.expected)


READERS: dict[str, Reader] = {
    read.__name__: read
    for read in (
        *(v1, v1_target, v1_elsewhere, v1_checkpointables, v1_metadata),
        *(v0_pytree, v0_pytree_target, v0_standard, v0_standard_target, v0_metadata),
        *(composite, composite_args, training, manager, manager_args),
    )
}


def _describes(found: Any, case: Case) -> list[str]:
    """Whether metadata has the structure of what was saved, and the arrays' shapes and dtypes."""
    if found is None:
        return ["no metadata"]
    return differences(jax.tree.map(_outline, found), jax.tree.map(_outline, case.plain))


def _outline(leaf: Any) -> str:
    if isinstance(leaf, jax.Array) and jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)  # Orbax describes what is on disk
    is_array = hasattr(leaf, "shape") and not type(leaf).__name__.startswith("Scalar")
    return f"{leaf.dtype}{list(leaf.shape)}" if is_array else "value"


def read_all(jobs: list[dict[str, str]]) -> dict[str, list[str]]:
    """Runs every job; an exception is a difference too."""
    report: dict[str, list[str]] = {}
    made: dict[str, Case] = {}
    for job in jobs:
        name = job["case"]
        if name not in made:
            made = {name: CASES[name]()}  # one at a time: some are large
        import time

        t0 = time.time()
        try:
            report[job["id"]] = READERS[job["how"]](Path(job["path"]), made[name])
        except Exception as error:  # the report names it; the other jobs go on
            trace = "".join(traceback.format_exception(error)[-4:])
            report[job["id"]] = [f"{type(error).__name__}: {error}"[:1000], trace[-1500:]]
        print(round(time.time() - t0, 2), job["id"], file=sys.stderr)
    return report


if __name__ == "__main__":
    source, destination = map(Path, sys.argv[1:])
    report = read_all(json.loads(source.read_text()))
    assert "holdfast" not in sys.modules, "the reader must be Orbax alone"
    destination.write_text(json.dumps(report, indent=1))
