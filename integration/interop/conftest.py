"""Eight CPU devices, quiet Orbax, and one process that reads for all tests."""

import os

# Before JAX starts its backends.
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Orbax's own, in the order met; ours stay errors.
_ORBAX_WARNINGS = (
    # It advises a target for every load without one.
    "ignore:Sharding info not provided when restoring:UserWarning",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            for ignored in _ORBAX_WARNINGS:
                item.add_marker(pytest.mark.filterwarnings(ignored))


@pytest.fixture(scope="session")
def read_with_orbax(tmp_path_factory):
    """Runs `orbax_reader` on jobs, in a fresh process; returns its report."""

    def read(jobs):
        folder = tmp_path_factory.mktemp("reader")
        (folder / "jobs.json").write_text(json.dumps(jobs))
        command = [sys.executable, "-m", "integration.interop.orbax_reader"]
        ended = subprocess.run(
            [*command, folder / "jobs.json", folder / "report.json"],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr[-4000:]
        return json.loads((folder / "report.json").read_text())

    return read
