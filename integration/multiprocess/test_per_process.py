"""Iterators of which each process saves its own, in one checkpoint."""

import os

import pytest

import holdfast as hf


def test_each_process_saves_its_iterator_and_other_processes_need_a_hook(run, tmp_path):
    found = run(2, "per_process.save_iterators", str(tmp_path))
    assert [said["at"] for said in found] == [10, 11]
    assert all(said["goes on"] for said in found)
    assert all(said["same"]["value"] is None for said in found), found
    for said in found:
        assert "DisagreementError" in said["other"]["error"], said
        assert "it/state.json" in said["other"]["message"]
        assert "jax.process_index()" in said["other"]["message"]
    assert sorted(os.listdir(tmp_path)) == ["own", "same"]
    assert hf.verify(tmp_path / "own").ok
    for said in run(1, "per_process.load_iterators", str(tmp_path)):
        assert "ProcessCountError" in said["refused"]["error"], said
        assert "load_from_processes" in said["refused"]["message"]
        assert "(0, 1)" in said["refused"]["message"]
        assert said["divided"]["value"] == 21


@pytest.mark.slow
def test_runs_with_iterators_of_grain_go_on_with_more_processes_and_with_fewer(run, tmp_path):
    for said in run(2, "per_process.runs_with_grain", str(tmp_path)):
        found = said["goes on"]
        assert {name: went.get("value") for name, went in found.items()} == dict.fromkeys(
            ("run", "manager", "by orbax", "from orbax"), True
        ), found
        assert "DisagreementError" in said["lacks"]["error"], said
        assert "item 'data'" in said["lacks"]["message"]
    assert not (tmp_path / "lacks").exists()
    for step, count, at in ((2, 4, 4), (3, 2, 8)):
        for said in run(count, "per_process.resume_with_grain", str(tmp_path), step, devices=1):
            assert "ProcessCountError" in said["refused"]["error"], said
            assert said["untouched"] == 0
            assert said["at"] == at
