"""Fixtures for tests that cross packages; eight CPU devices, so that shardings are real."""

import os

# Before JAX starts its backends.
_FLAG = "--xla_force_host_platform_device_count=8"
if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root():
    """The root of the checkout."""
    return ROOT


@pytest.fixture(params=["memory", "local"])
def place(request, tmp_path):
    """A place on each store that needs no server."""
    return f"memory://{tmp_path.name}/c" if request.param == "memory" else str(tmp_path / "c")


@pytest.fixture
def run_python(tmp_path):
    """Runs code in a fresh interpreter, in an empty folder; returns what it printed."""

    def run(code, **environment):
        ended = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path,
            env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    return run
