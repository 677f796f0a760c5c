"""An evaluation job beside a training job that removes steps, and what stops either."""

import os
import signal
import time

import numpy as np
import pytest

import holdfast as hf

keep = hf.training.preservation_policies.LatestN(1)
STEPS = 25


def state(number):
    return {"number": number, "numpy": np.full(60_000, number, np.int32)}


def leases(run):
    """Whoever is said to read; what a put left that was killed half-way says nothing."""
    return [name for name in os.listdir(run / "_readers") if not name.startswith(".put-")]


def test_a_slow_reader_never_loses_its_step_nor_sees_half_of_one(zygote, tmp_path, assert_whole):
    """The trainer keeps one step and saves as fast as it can; the reader starts first."""
    run, log = tmp_path / "run", tmp_path / "log"
    trainer, seen, overtaken = [], [], 0
    iterator = hf.checkpoint_utils.checkpoints_iterator(
        run,
        seconds_to_sleep=0.002,
        timeout=0.05,
        timeout_fn=lambda: "ended" in trainer[0].said(),
    )
    trainer.append(zygote.start("training", run, log, STEPS))
    for step in iterator:
        time.sleep(0.05)  # several more are saved meanwhile, and removed
        reader = hf.training.Checkpointer(run)
        assert_whole(reader.load(step), step)
        overtaken += reader.latest.step > step
        seen.append(step)
    trainer[0].join()
    assert "failed:" not in trainer[0].said()
    assert seen == sorted(set(seen))
    assert seen[-1] == STEPS - 1
    assert overtaken > 1, "the trainer was not faster than the reader"
    assert leases(run) == []


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_reader_that_runs_no_more_holds_nothing(zygote, tmp_path, how):
    """Killed, on this host, at once; stopped, after its time: and it is told when it goes on."""
    run, log = tmp_path / "run", tmp_path / "log"
    with hf.training.Checkpointer(run, preservation_policy=keep) as trainer:
        trainer.save(0, state(0))
        ttl_ms = 3_600_000 if how is signal.SIGKILL else 200
        worker = zygote.start("reader", run, log, ttl_ms)
        worker.wait_for("ready")
        os.kill(worker.pid, how)
        if how is signal.SIGKILL:
            worker.join()
        step = 0
        while step == 0 or any(entry.step == 0 for entry in trainer.checkpoints):
            step += 1
            assert trainer.save(step, state(step))
            trainer.wait()
            assert how is signal.SIGSTOP or step == 1
        assert leases(run) == []
        if how is signal.SIGSTOP:
            os.kill(worker.pid, signal.SIGCONT)
            worker.wait_for("lost")
            worker.join()
            assert "failed:" not in worker.said()
            assert leases(run) == []
