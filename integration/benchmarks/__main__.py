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

from integration.benchmarks import measure
from rich.console import Console
from rich.table import Table

_VERSIONS = ("holdfast", "orbax-checkpoint", "jax", "tensorstore", "numpy")
_NO_ASYNC = "raw disk"


def main() -> None:
    """Measures, prints and perhaps stores."""
    parser = argparse.ArgumentParser(prog="python -m integration.benchmarks")
    known = ",".join(measure.MEASUREMENTS)
    parser.add_argument("--workload", default=known, help=f"comma-separated; default {known}")
    parser.add_argument("--repetitions", type=int, default=7, help="counted, after one dropped")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: temporary")
    parser.add_argument("--json", type=Path, help="where to store every value")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    names = chosen.workload.split(",")
    unknown = set(names) - measure.MEASUREMENTS.keys()
    if unknown:
        parser.error(f"unknown workload {sorted(unknown)}; known are {known}")
    console = Console(stderr=True)
    figures: list[measure.Figure] = []
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        for name in names:
            with console.status(f"measuring {name}"):
                figures += measure.MEASUREMENTS[name](Path(folder), chosen.repetitions)
    machine = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    Console(width=120).print(table(figures, machine))
    if chosen.json:
        found = [{**vars(figure), "median": figure.median} for figure in figures]
        chosen.json.write_text(json.dumps({"machine": machine, "figures": found}, indent=1))


def table(figures: list[measure.Figure], machine: dict[str, object]) -> Table:
    """Medians and spread, and each contender's median over holdfast's."""
    title = ", ".join(f"{name} {value}" for name, value in machine.items())
    made = Table(title=title, title_style="dim", title_justify="left")
    for column in ("what", "who", "median", "min - max", "holdfast is"):
        made.add_column(column, justify="left" if column in ("what", "who") else "right")
    ours = {figure.what: figure for figure in figures if figure.contender == "holdfast"}
    last = ""
    for figure in sorted(figures, key=lambda f: list(ours).index(f.what)):
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
