"""A writer that is stopped in the middle of a save and goes on after another took over."""

import os
import signal
import time

import numpy as np

import holdfast as hf
from holdfast_storage import get_loop, open_backend


def sweep(parent):
    """Takes every writer for dead, as a sweep does whose store has been silent for an hour."""
    backend = open_backend(parent)

    async def run():
        strategy = await backend.commit_strategy()
        return (await strategy.sweep("", older_than=0.0)).removed

    return get_loop().run(run())


def attempts(parent):
    async def run():
        backend = open_backend(parent)
        return [info.key async for info in backend.walk("") if "attempt-" in info.key]

    return get_loop().run(run())


def test_a_writer_that_was_stopped_while_another_took_over_cannot_commit(
    zygote, object_store, tmp_path
):
    parent, log = f"{object_store.root}/place", tmp_path / "log"
    place = f"{parent}/checkpoint"
    worker = zygote.start("one-slow-save", place, log, 32, env=object_store.env)
    worker.wait_for("ready")
    while not attempts(parent):
        time.sleep(0.002)
    os.kill(worker.pid, signal.SIGSTOP)
    assert sweep(parent)
    hf.save(place, {"number": 1, "array": np.ones(10)})
    os.kill(worker.pid, signal.SIGCONT)
    worker.join()
    said = log.read_text()
    assert "AttemptLostError" in said or "CommitConflictError" in said, said
    assert hf.load(place)["number"] == 1
    assert hf.verify(place).ok
    sweep(parent)
    assert len({key.split("attempt-")[1].partition("/")[0] for key in attempts(parent)}) <= 1
