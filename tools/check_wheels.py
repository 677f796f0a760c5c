# /// script
# requires-python = ">=3.11"
# ///
"""Builds every distribution and proves that the wheels work without this checkout.

    uv run tools/check_wheels.py

Inside the workspace uv takes a package's siblings from their folders and never looks at the
bounds between them. Here each wheel is examined, then installed with its siblings into an
empty environment: the upper half of the stack for a save and a load, the lower half to show
that it needs neither JAX nor TensorStore. Everything else comes from the package index, at
the versions pinned in pyproject.toml.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BELOW_JAX = ("holdfast-metadata", "holdfast-storage", "holdfast-local")

SMOKE = """
import importlib.metadata
import importlib.resources
import pathlib
import sys

import holdfast as hf
import jax.numpy as jnp
import numpy as np

here = pathlib.Path(sys.prefix).resolve()
for name in ("holdfast", "holdfast_metadata", "holdfast_storage", "holdfast_checkpointer",
             "holdfast_manager", "holdfast_local"):
    folder = importlib.resources.files(name)
    assert pathlib.Path(str(folder)).resolve().is_relative_to(here), f"{name} is at {folder}"
    assert folder.joinpath("py.typed").is_file(), f"{name} has no py.typed"

schemes = {e.name for e in importlib.metadata.entry_points(group="holdfast.storage_backends")}
assert schemes >= {"file", "memory"}, schemes

state = {"w": jnp.arange(6.0).reshape(2, 3), "layers": [np.ones(3), (1, "x")]}
for url in (str(pathlib.Path.cwd() / "checkpoint"), "memory://smoke/checkpoint"):
    hf.save(url, state)
    back = hf.load(url)
    assert (back["w"] == state["w"]).all() and back["layers"][1] == (1, "x"), back
    assert hf.verify(url).ok
with hf.training.Checkpointer(pathlib.Path.cwd() / "run") as run:
    run.save(1, state)
    assert run.latest.step == 1
for name in hf.__all__:
    getattr(hf, name)
"""

SMOKE_BELOW_JAX = """
import importlib.util
import holdfast_local, holdfast_metadata, holdfast_storage
for name in ("jax", "jaxlib", "tensorstore"):
    assert importlib.util.find_spec(name) is None, f"{name} came along"
"""


@dataclass(frozen=True)
class Wheel:
    """A built wheel and what its metadata says."""

    path: Path
    name: str
    version: str
    requires: tuple[str, ...]
    files: frozenset[str]


def main() -> None:
    """Runs every check; the first that fails ends the process with what it found."""
    with tempfile.TemporaryDirectory(prefix="holdfast-wheels-") as scratch_name:
        scratch = Path(scratch_name)
        dist = scratch / "dist"
        uv("build", "--quiet", "--all-packages", "--out-dir", str(dist), cwd=ROOT)
        wheels = {w.name: w for w in map(read_wheel, sorted(dist.glob("*.whl")))}
        check_complete(wheels)
        for wheel in wheels.values():
            check_wheel(wheel, wheels)
            print(f"  {wheel.path.name}: {len(wheel.files)} files")
        pins = scratch / "pins.txt"
        pins.write_text("\n".join(pinned()) + "\n", encoding="utf-8")
        try_out(scratch / "below", pins, [wheels[name] for name in BELOW_JAX], SMOKE_BELOW_JAX)
        try_out(scratch / "all", pins, list(wheels.values()), SMOKE)
    print("wheels: built, bounds hold, installed alone, saved and loaded")


def uv(*arguments: str, cwd: Path) -> None:
    """Runs uv; ends the process if it fails."""
    command = os.environ.get("UV") or shutil.which("uv")
    if command is None:
        sys.exit("uv is not installed: python3 -m pip install uv")
    # An active environment would be used instead of the one that is asked for.
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    ended = subprocess.run([command, *arguments], cwd=cwd, env=environment, check=False)
    if ended.returncode:
        sys.exit(f"uv {' '.join(arguments)}: failed with {ended.returncode}")


def pinned() -> list[str]:
    """The exact versions of third-party packages that the workspace is tested with."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return list(settings["tool"]["uv"]["constraint-dependencies"])


def read_wheel(path: Path) -> Wheel:
    """Reads a wheel's name, version, requirements and list of files."""
    with zipfile.ZipFile(path) as archive:
        files = frozenset(archive.namelist())
        (document,) = (name for name in files if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(document))
    requires = tuple(metadata.get_all("Requires-Dist") or ())
    return Wheel(path, str(metadata["Name"]), str(metadata["Version"]), requires, files)


def check_complete(wheels: dict[str, Wheel]) -> None:
    """Every member of the workspace must have been built."""
    members = {
        tomllib.loads(path.read_text("utf-8"))["project"]["name"]
        for pattern in ("packages/*/pyproject.toml", "backends/*/pyproject.toml")
        for path in ROOT.glob(pattern)
    }
    if members != set(wheels):
        sys.exit(f"members are {sorted(members)}, but built were {sorted(wheels)}")


def check_wheel(wheel: Wheel, wheels: dict[str, Wheel]) -> None:
    """Types are marked, tests stay out, and siblings are bounded on both sides."""
    module = wheel.name.replace("-", "_")
    if f"{module}/py.typed" not in wheel.files:
        sys.exit(f"{wheel.path.name}: no {module}/py.typed")
    stray = [n for n in wheel.files if not n.startswith((f"{module}/", f"{module}-"))]
    if stray:
        sys.exit(f"{wheel.path.name}: files outside of {module}/: {sorted(stray)[:5]}")
    for requirement in wheel.requires:
        name = re.split(r"[ <>=!~;\[(]", requirement, maxsplit=1)[0]
        if name in wheels:
            check_bounds(wheel, requirement, wheels[name])
        elif name.startswith("holdfast"):
            sys.exit(f"{wheel.path.name} requires {requirement}, which is no member")


def check_bounds(wheel: Wheel, requirement: str, sibling: Wheel) -> None:
    """A sibling's bounds are two-sided and admit the version in this checkout."""
    bounds = dict(re.findall(r"(>=|<(?!=))\s*([0-9.]+)", requirement))
    if set(bounds) != {">=", "<"}:
        sys.exit(f"{wheel.path.name} requires {requirement!r}: state both >= and <")
    low, high, found = (
        [int(part) for part in text.split(".")]
        for text in (bounds[">="], bounds["<"], sibling.version)
    )
    if not low <= found < high:
        sys.exit(f"{wheel.path.name} requires {requirement!r}, but it is {sibling.version}")


def try_out(place: Path, pins: Path, wheels: list[Wheel], script: str) -> None:
    """Installs wheels into an empty environment and runs a script there."""
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    paths = [str(wheel.path) for wheel in wheels]
    uv("venv", "--quiet", "--python", sys.executable, str(place), cwd=place.parent)
    install = ("pip", "install", "--quiet", "--python", str(python), "--constraint", str(pins))
    uv(*install, *paths, cwd=place.parent)
    uv("pip", "check", "--quiet", "--python", str(python), cwd=place.parent)
    # -I: neither PYTHONPATH nor the working directory can stand in for what is installed.
    ended = subprocess.run([str(python), "-I", "-c", script], cwd=place, check=False)
    if ended.returncode:
        names = ", ".join(wheel.name for wheel in wheels)
        sys.exit(f"the installed wheels do not work ({names})")


if __name__ == "__main__":
    main()
