"""The README's first command, as a newcomer runs it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_example(folder, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "examples/train.py"), *arguments],
        cwd=folder,
        env={**os.environ, "HOLDFAST_ROOT": str(folder), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_story_is_told_and_ends_well(tmp_path):
    told = run_example(tmp_path)
    assert told.returncode == 0, told.stdout + told.stderr
    assert told.stderr == ""
    for words in ("kill -9 at step 350", "identical, bit for bit"):
        assert words in told.stdout
    # The save of step 300 runs in the background when the kill comes: usually it is done.
    assert re.search(r"resumed from step (100|200|300)\b", told.stdout), told.stdout
    runs = sorted(p.name for p in (tmp_path / "runs/digits").glob("story-*/*"))
    assert runs == ["killed", "reference"]


@pytest.mark.slow
def test_a_run_goes_on_with_more_steps_from_its_newest_whole_one(tmp_path):
    small = ("--url", "mine", "--save-every", "10")
    first = run_example(tmp_path, *small, "--steps", "20")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "committed" in first.stdout
    (tmp_path / "mine/20/state/_TREE.json").write_text("{}")
    more = run_example(tmp_path, *small, "--steps", "20")
    assert more.returncode == 0, more.stdout + more.stderr
    for words in ("step 20 is incomplete and was skipped", "resumed from step 10", "committed"):
        assert words in more.stdout
    last = run_example(tmp_path, *small, "--steps", "25")
    for words in ("resumed from step 20", "accuracy after 25 steps"):
        assert words in last.stdout, last.stdout + last.stderr
    assert "skipped" not in last.stdout


def test_nonsense_is_refused(tmp_path):
    assert run_example(tmp_path, "--steps", "0").returncode == 2
