"""A signal to end: a last step is saved, and no save outlives the deadline."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import uuid

import numpy as np
import pytest

from holdfast_checkpointer.engine import response
from holdfast_checkpointer.errors import AbandonedError
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.policies.save_decision_policies import FixedIntervalPolicy
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import carry_through
from holdfast_storage.testing.faulty import FaultyBackend


class Hanging(FaultyBackend):
    """A store that does not answer puts of one document while it hangs."""

    hangs = False
    stays = False

    def __init__(self, inner):
        super().__init__(inner)
        self.waiting = threading.Event()
        self.released = threading.Event()

    async def put(self, key, data, **how):
        if self.hangs and key.endswith("_CHECKPOINT_METADATA"):
            self.waiting.set()
            if self.stays:
                await carry_through(asyncio.to_thread(self.released.wait))
            else:
                await asyncio.sleep(600)
        return await super().put(key, data, **how)


@pytest.fixture
def store(monkeypatch):
    """What a `Checkpointer` opened in this test writes to."""
    view = Hanging(open_backend(f"memory://end-{uuid.uuid4().hex}/job"))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    yield view
    view.released.set()


def send(number=signal.SIGTERM):
    os.kill(os.getpid(), number)


def test_the_step_after_the_signal_is_saved_whatever_the_policy_says_and_the_program_ends(store):
    saved = []
    with (
        pytest.raises(SystemExit) as ended,
        training.save_on_termination() as state,
        training.Checkpointer("run", save_decision_policy=FixedIntervalPolicy(100)) as run,
    ):
        for step in range(100):
            if run.save_async(step, {"step": step}):
                saved.append(step)
            if step == 3:
                assert not state.requested
                send()  # after the save: this step has been decided about
            if run.reached_preemption(step):
                break
    assert saved == [0, 4]
    assert ended.value.code == 128 + signal.SIGTERM
    assert [entry.step for entry in run.checkpoints] == [0, 4]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert run.should_save(100)
    assert not training.Checkpointer("run").reached_preemption(5)  # the block is over


def test_a_save_that_the_deadline_stops_leaves_nothing_and_is_told_once(store):
    store.hangs = True
    with pytest.raises(AbandonedError) as told, training.save_on_termination(2):
        run = training.Checkpointer("run")
        running = run.save_async(1, {"a": 1})
        store.waiting.wait()
        send()
        run.save(2, {"a": 2})  # waits for the first, and is not begun
    assert "the save of step 1 in" in str(told.value)
    assert "SIGTERM came" in str(told.value)
    assert "step 2 was not saved" in told.value.__notes__[-1]
    assert running.exception() is told.value
    assert get_loop().run(store.children("")).prefixes == ("_lease",)
    store.hangs = False
    assert run.save(3, {"a": 3})
    run.close()


def test_a_save_after_the_deadline_is_refused_and_after_the_block_taken(store):
    run = training.Checkpointer("run")
    refused = pytest.raises(AbandonedError, match="step 1 in .* was not begun")
    with refused, training.save_on_termination(0):
        send()
        run.save(1, {"a": 1})
    assert run.save(1, {"a": 1})
    run.close()


def test_a_save_that_does_not_stop_is_given_up_with_a_word(store, capfd):
    store.hangs = store.stays = True
    run = training.Checkpointer("run")
    with pytest.raises(SystemExit), training.save_on_termination(0.2):
        running = run.save_async(1, {"a": 1})
        store.waiting.wait()
        send()
    assert "the save of step 1" in capfd.readouterr().err
    with pytest.raises(AbandonedError, match="given up, for it did not stop"):
        run.close()
    run.close()  # told once
    assert running.done()
    store.released.set()


def test_what_was_there_is_called_and_put_back_and_decides_how_the_program_ends(store):
    seen = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with training.save_on_termination() as state:
            send()
            send()
            assert state.requested
        assert seen == [signal.SIGTERM] * 2
        assert signal.getsignal(signal.SIGTERM) is mine
        with training.save_on_termination() as outer, training.save_on_termination() as inner:
            send()
            assert outer.requested
            assert inner.requested
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with training.save_on_termination():
            send()
        with training.save_on_termination():
            signal.signal(signal.SIGTERM, mine)  # somebody takes the place: it stays theirs
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_other_signals_may_be_named_and_an_error_under_way_is_not_replaced(store):
    both = [signal.SIGUSR1, signal.SIGTERM]
    with pytest.raises(SystemExit) as ended, training.save_on_termination(signals=both):
        send(signal.SIGUSR1)
    assert ended.value.code == 128 + signal.SIGUSR1
    with pytest.raises(ZeroDivisionError), training.save_on_termination():
        send()
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


@pytest.mark.parametrize("signals", [[], [signal.SIGKILL], ["SIGTERM"], [9999], 15])
def test_signals_that_nobody_can_listen_to_are_refused(signals):
    refused = pytest.raises(ValueError, match="signals is a sequence")
    with refused, training.save_on_termination(signals=signals):
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_only_the_main_thread_may_listen_and_time_is_a_number():
    failures = []

    def enter():
        try:
            with training.save_on_termination():
                pass
        except ValueError as error:
            failures.append(str(error))

    thread = threading.Thread(target=enter, name="another")
    thread.start()
    thread.join()
    assert "only the main thread may" in failures[0]
    assert "another" in failures[0]
    with pytest.raises(ValueError, match="deadline_secs"), training.save_on_termination(-1):
        pass


def test_closing_waits_for_no_deletion_past_the_deadline(store, monkeypatch):
    waited = []
    with pytest.raises(SystemExit), training.save_on_termination(5):
        run = training.Checkpointer("run")
        monkeypatch.setattr(run._run.retention._reaper, "close", waited.append)
        run.close()
        send()
        run.close()
    assert waited[0] == 30
    assert waited[1] <= 5


JOB = """
import os, signal, sys
import numpy as np
from holdfast_manager import training
from holdfast_manager.policies.save_decision_policies import FixedIntervalPolicy

never = FixedIntervalPolicy(10**9)
with training.save_on_termination(), training.Checkpointer(
    sys.argv[1], save_decision_policy=never
) as run:
    for step in range(10**9):
        run.save_async(step, {"w": np.full(500_000, step)})
        if step == 10:
            print("training", flush=True)
        if run.reached_preemption(step):
            break
print("not reached")
"""


def test_a_job_that_is_told_to_end_ends_as_such_with_its_last_step_saved(tmp_path):
    job = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(JOB), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert job.stdout.readline() == "training\n"
    job.terminate()
    told, said = job.communicate(timeout=120)
    assert job.returncode == 128 + signal.SIGTERM, said
    assert told == ""
    run = training.Checkpointer(tmp_path / "run")
    assert run.latest.step > 10
    np.testing.assert_array_equal(run.load()["w"], np.full(500_000, run.latest.step))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "0",
        str(run.latest.step),
        "_lease",
    ]


def test_a_deadline_of_its_own_still_ends_a_save(store, monkeypatch):
    monkeypatch.setattr(response, "STOPPING_SECONDS", 0.1)
    store.hangs = store.stays = True
    run = training.Checkpointer("run", context=_quick())
    run.save_async(1, {"a": 1})
    with pytest.raises(TimeoutError, match="the save of step 1 .* it was given up"):
        run.wait()
    run.close()


def _quick():
    from holdfast_checkpointer.options import AsyncOptions

    return Context(asynchronous=AsyncOptions(timeout_secs=0.1))
