"""kill -9 at random instants: every acknowledged step is there, and nothing else is seen."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend

KILLS = 30
LONGEST_LIFE_S = 0.4


@pytest.fixture(scope="module")
def zygote():
    worker = Path(__file__).with_name("worker.py")
    process = subprocess.Popen(
        [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


def live_and_die(zygote, mode, place, log, life):
    """Starts a worker, lets it save for a while, and kills it."""
    started = log.stat().st_size if log.exists() else 0
    zygote.stdin.write(f"{mode} {place} {log}\n")
    zygote.stdin.flush()
    pid = int(zygote.stdout.readline())
    deadline = time.monotonic() + 60
    while not (log.exists() and b"ready" in log.read_bytes()[started:]):
        assert time.monotonic() < deadline, "the worker did not start"
        time.sleep(0.002)
    time.sleep(life)
    os.kill(pid, signal.SIGKILL)
    while os.path.exists(f"/proc/{pid}") and "Z" not in state_of(pid):
        time.sleep(0.001)
    assert b"failed" not in log.read_bytes()
    return [int(line) for line in log.read_text().split() if line != "ready"]


def state_of(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def assert_whole(found, number):
    assert found["number"] == number
    assert (found["numpy"] == np.full(60_000, number)).all()
    assert (np.asarray(found["jax"]) == number).all()
    assert all((layer == number).all() for layer in found["layers"])


def sweep(folder):
    async def run():
        strategy = await open_backend(folder).commit_strategy()
        return await strategy.sweep("")

    return get_loop().run(run())


def test_no_acknowledged_step_is_lost_and_no_other_is_torn(zygote, tmp_path):
    random.seed(20261124)
    run, log = tmp_path / "run", tmp_path / "log"
    lives = sorted(random.uniform(0, LONGEST_LIFE_S) for _ in range(KILLS))
    random.shuffle(lives)
    for life in lives:
        acknowledged = live_and_die(zygote, "steps", run, log, life)
        with hf.training.Checkpointer(run) as opened:
            steps = [entry.step for entry in opened.checkpoints]
            if acknowledged:
                assert max(acknowledged) <= steps[-1] <= max(acknowledged) + 1
            for step in steps:
                assert_whole(opened.load(step), step)
    assert len(acknowledged) > KILLS / 4, "the workers hardly saved anything"
    # The next start cleans up: only steps are left, and none of them is damaged.
    with hf.training.Checkpointer(run) as last:
        last.save(10_000, {"number": 0})
    for entry in os.listdir(run):
        if entry.startswith(".put-"):
            continue  # a put that was killed half-way; goes once it is an hour old
        assert entry.isdecimal(), entry
        assert hf.verify(run / entry).ok


def test_an_overwritten_checkpoint_is_always_the_old_or_the_new(zygote, tmp_path):
    random.seed(20261125)
    place, log = tmp_path / "checkpoint", tmp_path / "log"
    for _ in range(KILLS):
        acknowledged = live_and_die(
            zygote, "overwrites", place, log, random.uniform(0, LONGEST_LIFE_S)
        )
        if not acknowledged:
            continue
        found = hf.load(place)
        assert max(acknowledged) <= found["number"] <= max(acknowledged) + 1
        assert_whole(found, found["number"])
        assert hf.verify(place).ok
    assert len(acknowledged) > KILLS / 4, "the workers hardly saved anything"
    sweep(tmp_path)
    left = [
        name for name in os.listdir(tmp_path) if ".displaced-" not in name and ".put-" not in name
    ]
    assert sorted(left) == ["checkpoint", "log"]
    assert_whole(hf.load(place), hf.load(place)["number"])
