"""`uv run python -m integration.benchmarks`: everything in one run, as a table and as JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path

from rich.console import Console
from rich.table import Table

from integration.benchmarks import jobs, measure, stores

_VERSIONS = ("holdfast", "orbax-checkpoint", "jax", "tensorstore", "numpy")
_MEASUREMENTS = measure.MEASUREMENTS | {
    "store": stores.object_store,
    "jobs": jobs.jobs,
}
_NOTES = (
    "Medians over the counted repetitions, contenders taking turns. A save ends when it is durable "
    "as far as the contender goes: holdfast syncs every file, the folders and the rename; Orbax "
    "its array files, not its JSON files nor the rename; the raw disk is one file, written and "
    "synced. A load ends when every array is ready, with shapes, dtypes and shardings given. "
    "Cold: the files' pages are dropped before. In a job the slowest process counts, from when all "
    "begin; its raw disk is a file of each process with its share."
)


def main() -> None:
    """Measures, prints and perhaps stores."""
    parser = argparse.ArgumentParser(prog="python -m integration.benchmarks")
    known = ",".join(_MEASUREMENTS)
    parser.add_argument("--workload", default=known, help=f"comma-separated; default {known}")
    parser.add_argument("--repetitions", type=int, default=7, help="counted, after one dropped")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--json", type=Path, help="where to store every value")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    names = chosen.workload.split(",")
    unknown = set(names) - _MEASUREMENTS.keys()
    if unknown:
        parser.error(f"unknown workload {sorted(unknown)}; known are {known}")
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    progress, out = Console(stderr=True), Console(width=110)
    out.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    figures: list[measure.Figure] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for name in names:
            with progress.status(f"measuring {name}"):
                found = _MEASUREMENTS[name](Path(folder), chosen.repetitions)
            out.print(table(found))
            figures += found
            if chosen.json:
                store(chosen.json, machine, figures)
    out.print(_NOTES, highlight=False, style="dim")


def store(path: Path, machine: dict[str, object], figures: list[measure.Figure]) -> None:
    """Writes every value; after each workload, so that an interrupted run keeps what it has."""
    found = [{**vars(figure), "median": figure.median} for figure in figures]
    path.write_text(json.dumps({"machine": machine, "figures": found}, indent=1))


def table(figures: list[measure.Figure]) -> Table:
    """Medians and spread, and each contender's median over holdfast's."""
    made = Table()
    for column in ("what", "who", "median", "min - max", "holdfast is"):
        made.add_column(column, justify="left" if column in ("what", "who") else "right")
    ours = {figure.what: figure for figure in figures if figure.contender == "holdfast"}
    last = ""
    for figure in sorted(figures, key=lambda f: (list(ours).index(f.what), f.contender)):
        ratio = figure.median / ours[figure.what].median
        said = "" if figure.contender == "holdfast" else f"{ratio:.2f} x as fast"
        if figure.unit != "s" and said:
            said = f"{1 / ratio:.2f} of it"
        made.add_row(
            figure.what if figure.what != last else "",
            figure.contender,
            f"{figure.median:.3f} {figure.unit}",
            f"{min(figure.values):.3f} - {max(figure.values):.3f}",
            said,
            end_section=False,
        )
        last = figure.what
    return made


if __name__ == "__main__":
    sys.exit(main())
