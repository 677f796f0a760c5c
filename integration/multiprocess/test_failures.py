"""What goes wrong on one process is told to all, leaves nothing, and does not stop the job."""

import os
import signal
import subprocess

import pytest

import holdfast as hf
from integration.multiprocess import job

# What a process is told that was asked for the wrong thing: class, builtin class, words.
WRONG = {
    "path": ("TypeError", "TypeError", "got int"),
    "scheme": ("ValueError", "ValueError", "nowhere"),
    "options": ("ValueError", "ValueError", "names the processes [7]"),
    "validation": ("UnsupportedLeafError", "ValueError", "bad"),
}
PHASES = {
    "host": "the copy to the host",
    "write": "the write",
    "seal": "the seal",
    "merge": "the merge",
    "commit": "the commit",
}


def left_in(folder):
    """Everything that a failed save might have left, hidden names included."""
    return sorted(os.listdir(folder))


def test_trees_that_differ_are_refused_everywhere_by_process_and_leaf(run, tmp_path):
    found = run(2, "disagree", str(tmp_path))
    leaves = {"leaf": "extra", "value": "n", "number": "step", "shape": "n", "dtype": "n"}
    leaves |= {name: name for name in ("own", "scalar", "zero", "nan", "elsewhere")}
    for name, leaf in leaves.items():
        for process in found:
            said = process[name]
            assert "DisagreementError" in said["error"], said
            assert "ValueError" in said["error"]
            assert f"state['{leaf}']: " in said["message"]
            assert "process 0" in said["message"]
            assert "process 1" in said["message"]
    assert "on process 0; no sharding on process 1" in found[0]["elsewhere"]["message"]
    assert "shape [3] on process 0; shape [4] on process 1" in found[1]["shape"]["message"]
    for name in ("alike", "given"):
        assert [process[name].get("value", process[name]) for process in found] == [None, None]
        assert hf.verify(tmp_path / name).ok
    assert left_in(tmp_path) == ["alike", "given"]


def test_a_failure_in_any_phase_on_any_process_is_raised_on_all_and_leaves_nothing(run, tmp_path):
    found = run(2, "fail", str(tmp_path))
    assert len(found[0]) == 16
    for name, own in found[0].items():
        phase, culprit = name.split("-")
        both = {0: own, 1: found[1][name]}
        guilty, other = both[int(culprit)], both[1 - int(culprit)]
        wanted, builtin, said = WRONG.get(
            phase, ("OSError", "OSError", f"no space left for the {phase}")
        )
        assert wanted in guilty["error"], (name, guilty)
        assert "RemoteProcessError" in other["error"], (name, other)
        assert other["process"] == int(culprit)
        assert other["phase"] == PHASES.get(phase, "the validation")
        assert builtin in other["error"]
        assert other["seconds"] < 60
        assert said in other["message"]
        if phase == "host":
            assert "(leaf '" in other["message"]
        for each in both.values():
            assert each["again"].get("value", "failed") is None, (name, each["again"])
    assert left_in(tmp_path) == sorted(found[0])
    assert all(hf.verify(tmp_path / name).ok for name in found[0])


def test_a_process_that_does_not_come_is_named_and_a_taken_place_is_the_same_error_everywhere(
    run, tmp_path
):
    first, second = run(2, "stall", str(tmp_path))
    assert "TimeoutError" in first["late"]["error"]
    assert "process 1" in first["late"]["message"]
    assert "RemoteProcessError" in second["late"]["error"]
    assert second["late"]["seconds"] < 5
    for said in (first, second):
        assert said["again"]["value"] is None
        assert "FileExistsError" in said["taken"]["error"]
    assert left_in(tmp_path) == ["again"]


def test_saves_run_in_the_background_to_several_places_at_once(run, tmp_path):
    assert run(2, "save_in_background", str(tmp_path)) == [[True] * 4] * 2
    assert left_in(tmp_path) == ["0", "1", "2", "3"]


def test_storage_that_is_not_shared_is_noticed_before_anything_is_written(run, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    own_disk = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs none {folder} && exec "$@"', "sh"]
    if subprocess.run([*own_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system of one process")
    found = run(2, "save_unshared", str(folder / "checkpoint"), before=[[], own_disk])
    for said in found:
        assert "StorageNotSharedError" in said["error"], said
        assert "process 1" in said["message"]
    assert left_in(folder) == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_killed_in_a_save_loses_no_step_and_the_next_job_goes_on(run, tmp_path, victim):
    started = job.start(2, "save_until_killed", str(tmp_path), victim)
    other = started.processes[1 - victim]
    try:
        started.processes[victim].wait(120)
        if victim == 0:  # it held the job's store, so JAX ends the other at once
            assert other.wait(60) == -signal.SIGABRT
        else:  # nobody knows yet that it is gone: it is a process that does not get on
            said = job.word_of(other)
            assert "ProcessStalledError" in said["error"]
            assert "process 1 did not come to the files" in said["message"]
    finally:
        started.end()
    assert hf.verify(tmp_path / "0").ok
    if victim:  # the primary lives, and has removed what the dead one wrote
        assert left_in(tmp_path) == ["0"]
        return
    assert not hf.is_checkpoint(tmp_path / "1")
    assert run(1, "save", str(tmp_path / "1"), [2]) == ["saved"]
    assert hf.verify(tmp_path / "1").ok
