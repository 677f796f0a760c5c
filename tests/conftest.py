"""Fixtures for tests that cross packages."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root():
    """The root of the checkout."""
    return ROOT


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
