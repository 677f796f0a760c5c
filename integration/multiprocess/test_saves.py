"""One checkpoint from all processes of a job, loaded by jobs of another size."""

import pytest

import holdfast as hf


@pytest.mark.parametrize("chunk_bytes", [None, 64])
def test_what_two_processes_save_others_load(run, tmp_path, chunk_bytes):
    place = str(tmp_path / "checkpoint")
    assert run(2, "save", place, [2, 2], chunk_bytes) == ["saved"] * 2
    assert hf.verify(place).ok
    assert run(1, "load", place, [2]) == ["loaded"]
    assert run(4, "load", place, [4, 2]) == ["loaded"] * 4
