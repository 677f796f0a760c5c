"""Two real processes that want to write to one run."""

import functools
import os
import signal

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend
from holdfast_storage.lease import watching
from holdfast_storage.lease.epochs import list_epochs, read_epoch


def state(number):
    return {"number": np.full(3, number)}


@pytest.fixture
def impatient(monkeypatch):
    """Whoever would watch another process for a while fails instead."""

    async def never(seconds):
        pytest.fail("it waits")

    monkeypatch.setattr(watching, "Patience", functools.partial(watching.Patience, sleep=never))


@pytest.fixture
def first(zygote, tmp_path):
    """A process that has saved step 1 and holds the run."""
    worker = zygote.start("holder", tmp_path / "run", tmp_path / "log", 1)
    worker.wait_for("held")
    yield worker
    if os.path.exists(f"/proc/{worker.pid}"):
        os.kill(worker.pid, signal.SIGKILL)
    worker.join()


def steps(run):
    return {entry.step: int(run.load(entry)["number"][0]) for entry in run.checkpoints}


def lease(run):
    backend = open_backend(run)

    async def highest():
        return await read_epoch(backend, max(await list_epochs(backend)))

    return get_loop().run(highest())


def test_a_second_is_refused_until_the_first_has_ended_without_a_close(first, tmp_path, impatient):
    with hf.training.Checkpointer(tmp_path / "run") as second:
        assert steps(second) == {1: 1}
        told = rf"process {first.pid} on {os.uname().nodename}, since 20\d\d-.* Nothing was written"
        with pytest.raises(hf.errors.LeaseHeldError, match=told) as error:
            second.save(2, state(-1))
        assert error.value.pid == first.pid
        with pytest.raises(hf.errors.LeaseHeldError):
            second.delete(1)
        with pytest.raises(hf.errors.LeaseHeldError):
            hf.delete(tmp_path / "run" / "1")
        (tmp_path / "go").touch()
        first.join()
        assert lease(tmp_path / "run").released
        assert second.save(3, state(3))
        second.reload()
        assert steps(second) == {1: 1, 2: 2, 3: 3}


def test_after_a_kill_the_second_goes_on_at_once(first, tmp_path, impatient):
    first.kill()
    with hf.training.Checkpointer(tmp_path / "run") as second:
        assert second.save(2, state(2))
        assert steps(second) == {1: 1, 2: 2}


def test_who_slept_while_it_was_taken_over_is_told_and_seen_no_more(first, tmp_path, impatient):
    os.kill(first.pid, signal.SIGSTOP)
    with (
        hf.training.Checkpointer(tmp_path / "run") as second,
        pytest.raises(hf.errors.LeaseHeldError),
    ):
        second.save(2, state(-1))
    with hf.training.Checkpointer(tmp_path / "run", takeover=True) as second:
        assert second.save(5, state(5))
        (tmp_path / "go").touch()
        os.kill(first.pid, signal.SIGCONT)
        first.join()
        assert "lost" in first.said()
        second.reload()
        assert steps(second) == {1: 1, 5: 5}
        assert second.save(6, state(6))


def test_a_forked_child_is_another_process(zygote, tmp_path):
    worker = zygote.start("parent", tmp_path / "run", tmp_path / "log", 1)
    worker.join()
    assert worker.said() == ["refused", "saved"]
    assert steps(hf.training.Checkpointer(tmp_path / "run")) == {1: 1, 2: 2}
    assert lease(tmp_path / "run").released
