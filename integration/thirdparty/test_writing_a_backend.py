"""The backend of docs/backends/writing-a-backend.md, as its own distribution, through the kit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/backends/writing-a-backend.md"
EXAMPLE = ROOT / "examples/backends/holdfast-flock"


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "src/holdfast_flock/__init__.py", "tests/test_kit.py"]
)
def test_the_page_shows_the_files_as_they_are(name):
    shown = re.findall(r"^```\w+\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert (EXAMPLE / name).read_text("utf-8") in shown


@pytest.mark.slow
def test_it_installs_by_itself_and_passes_the_whole_kit(tmp_path):
    """Built, installed into a folder of its own, found by its entry point alone."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "uv is not installed: python3 -m pip install uv"
    subprocess.run([uv, "build", "--wheel", "-q", "-o", tmp_path / "dist", EXAMPLE], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    subprocess.run(
        [
            uv,
            "pip",
            "install",
            "-q",
            "--no-deps",
            "--python",
            sys.executable,
            "--target",
            tmp_path / "installed",
            wheel,
        ],
        check=True,
    )
    found = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--numprocesses=0",
         f"--basetemp={tmp_path / 'base'}", EXAMPLE / "tests"],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "installed")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-5000:]
    passed = re.search(r"(\d+) passed", found.stdout)
    assert passed, found.stdout
    assert int(passed[1]) > 90
