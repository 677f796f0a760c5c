"""A job is killed while it trains; another one, of another size, goes on."""

import random
import time

import pytest

import holdfast as hf
from integration.multiprocess import job

PATIENCE_S = 120.0


def noted(log, count):
    """The newest step that a process was told is saved; -1 if none was."""
    steps = [-1]
    for index in range(count):
        path = log.parent / f"{log.name}-{index}"
        if path.exists():
            steps += [int(line) for line in path.read_text().splitlines()]
    return max(steps)


def live_and_die(count, victim, run, log, life_s, after):
    """Trains with `count` processes, kills one of them, and soon after it the others."""
    started = job.start(count, "run_parts.train", str(run), str(log), 10_000, devices=1)
    try:
        until = time.monotonic() + PATIENCE_S
        while noted(log, count) < after:
            assert time.monotonic() < until, "the job does not get on"
            if any(process.poll() is not None for process in started.processes):
                break  # its words are shown below
            time.sleep(0.02)
        time.sleep(life_s)
        assert all(process.poll() is None for process in started.processes), started.results()
        started.processes[victim].kill()
        time.sleep(life_s)  # JAX's own runtime ends the others, by its heartbeat, much later
    finally:
        started.end()


@pytest.mark.slow
def test_jobs_of_any_size_go_on_after_a_process_was_killed_at_any_moment(run, tmp_path):
    dice = random.Random(20261127)
    folder, log = tmp_path / "run", tmp_path / "log"
    newest = -1
    for count, victim in ((2, 1), (2, 0), (4, dice.randrange(4))):
        live_and_die(count, victim, folder, log, dice.uniform(0.0, 0.4), newest + 3)
        told = noted(log, 4)
        assert told > newest
        with hf.training.Checkpointer(folder) as opened:
            steps = [entry.step for entry in opened.checkpoints]
            assert told <= steps[-1] <= told + 1  # none that was told of is lost
            assert all(hf.verify(folder / str(step)).ok for step in steps)
        newest = steps[-1]
    (last,) = run(1, "run_parts.train", str(folder), str(log), 3, devices=1)
    assert last["found"][-1] == newest
    assert last["left"] == [newest + 1, newest + 2, newest + 3]
    # The killed puts of single documents are known to nobody, and go when they are an hour old.
    unknown = (".put-", ".holdfast-clock-", "_")
    left = {entry.name for entry in folder.iterdir() if not entry.name.startswith(unknown)}
    assert left == {str(step) for step in last["left"]}  # no attempt of the dead is left
