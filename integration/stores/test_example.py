"""The example, unchanged, on every kind of storage, chosen by the environment alone.

Each kind is met once, by one of the two ways to name it: `test_kills.py` kills writers on all.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/train.py"


def run_example(folder, env, *arguments):
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        cwd=folder,
        env={**os.environ, **env, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("object_store", ["s3", "gcs hierarchical"], indirect=True)
def test_a_killed_run_resumes_by_the_root_alone(object_store, tmp_path):
    told = run_example(tmp_path, object_store.env | {"HOLDFAST_ROOT": object_store.root})
    assert told.returncode == 0, told.stdout + told.stderr
    for words in ("kill -9 at step 350", "identical, bit for bit"):
        assert words in told.stdout
    assert re.search(r"resumed from step (100|200|300)\b", told.stdout), told.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("object_store", ["gcs flat"], indirect=True)
def test_a_run_goes_on_by_its_url(object_store, tmp_path):
    url = f"{object_store.root}/mine"
    small = ("--url", url, "--save-every", "10")
    first = run_example(tmp_path, object_store.env, *small, "--steps", "20")
    assert first.returncode == 0, first.stdout + first.stderr
    more = run_example(tmp_path, object_store.env, *small, "--steps", "25")
    assert "resumed from step 20" in more.stdout, more.stdout + more.stderr


def test_memory_holds_a_run_for_as_long_as_the_process_lives(tmp_path):
    told = run_example(tmp_path, {}, "--url", "memory://team/mine", "--steps", "20")
    assert told.returncode == 0, told.stdout + told.stderr
    assert "committed" in told.stdout


@pytest.mark.slow
def test_the_story_says_that_memory_does_not_outlive_its_process(tmp_path):
    told = run_example(tmp_path, {"HOLDFAST_ROOT": "memory://team"})
    assert told.returncode == 1
    assert "no checkpoint of the killed run outlived its process" in told.stderr
