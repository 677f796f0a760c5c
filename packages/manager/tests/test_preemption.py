"""JAX's own preemption service, in a process of its own."""

import socket
import subprocess
import sys
import textwrap

import pytest

from holdfast_manager.engine.preemption import Preemption

JOB = """
    import os, signal, sys, time
    import jax

    jax.distributed.initialize(f"localhost:{sys.argv[1]}", num_processes=1, process_id=0)
    import holdfast_manager
    from holdfast_manager.policies.save_decision_policies import PreemptionCheckpointingPolicy

    policy = PreemptionCheckpointingPolicy()
    run = holdfast_manager.training.Checkpointer(sys.argv[2], save_decision_policy=policy)
    block = holdfast_manager.training.save_on_termination()
    state = block.__enter__()  # takes nothing from the service
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    for step in range(100_000):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        decided = run.should_save(step)
        if run.save(step, {"step": step}):
            assert decided and step > 3
            assert run.reached_preemption(step) and state.requested and state.seconds_left() <= 25
            break
        assert not decided
        time.sleep(0.001)
    run.close()
    try:
        block.__exit__(None, None, None)
    except SystemExit as end:
        assert end.code == 143
        print("saved", step, [entry.step for entry in run.checkpoints], flush=True)
    os._exit(0)
"""


def test_a_job_that_gets_sigterm_saves_the_step_that_the_service_names(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(JOB), str(port), str(tmp_path / "run")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "saved" in done.stdout, done.stdout + done.stderr
    _, step, listed = done.stdout.split(maxsplit=2)
    assert listed.strip() == f"[{step}]"


def test_without_the_service_nothing_is_preempted():
    preemption = Preemption()
    assert not preemption.reached(1)
    assert not preemption.reached(1)


def test_the_service_is_asked_once_for_each_step(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "holdfast_manager.engine.preemption._ask", lambda step: asked.append(step) or step == 2
    )
    preemption = Preemption()
    answers = [preemption.reached(step) for step in (1, 1, 2, 2, 2, 3)]
    assert answers == [False, False, True, True, True, False]
    assert asked == [1, 2, 3]


@pytest.mark.parametrize(
    ("message", "warned"),
    [
        ("Preemption sync manager has not been initialized. Make sure", False),
        ("the connection was lost", True),
    ],
)
def test_a_service_that_fails_is_no_absent_one_and_is_logged(monkeypatch, caplog, message, warned):
    def ask(_step):
        raise RuntimeError(message)

    monkeypatch.setattr("jax.experimental.multihost_utils.reached_preemption_sync_point", ask)
    assert not Preemption().reached(7)
    assert ("did not answer at step 7" in caplog.text) == warned
