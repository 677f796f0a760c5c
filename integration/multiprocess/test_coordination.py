"""The processes of a real JAX job agree, and hear of each other's failures."""

import pytest


@pytest.mark.parametrize("count", [4])
def test_processes_agree_and_leave_no_key(run, count):
    for found in run(count, "coordinate", None):
        assert found["verdict"] == ",".join(map(str, range(count)))
        assert found["ended"] == "done"
        assert found["left"] == []


@pytest.mark.parametrize("culprit", [1])
def test_a_failure_is_heard_by_all_with_process_phase_and_message(run, culprit):
    found = run(2, "coordinate", culprit)
    assert found[culprit]["error"] == "OSError"
    other = found[1 - culprit]
    assert other["error"] == "RemoteProcessError"
    assert f"process {culprit}" in other["message"]
    assert "the write" in other["message"]
    assert "params.w is full" in other["message"]
    assert other["left"] == []
