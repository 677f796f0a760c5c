"""What saves in one process saves in several, by whichever of them."""

import os

import holdfast as hf


def test_every_handler_and_checkpointer_of_both_interfaces_works_in_a_job(run, tmp_path):
    found = run(2, "handlers.every_handler", str(tmp_path))
    assert found[0].pop("json that differs").startswith("the processes do not save the same")
    assert found[1].pop("json that differs").startswith("the processes do not save the same")
    assert found == [dict.fromkeys(found[0])] * 2
    assert len(found[0]) == 8
    saved = sorted(os.listdir(tmp_path))
    assert len(saved) == 8
    for name in saved:
        assert hf.verify(tmp_path / name).ok


def test_some_of_a_job_save_by_any_primary_and_no_key_stays(run, tmp_path):
    found = run(4, "handlers.some_take_part", str(tmp_path), devices=1)
    for me, said in enumerate(found):
        done = said["done"]
        if me % 2:
            assert "DisagreementError" in done.pop("differs")["error"]
        else:
            assert "takes no part" in done.pop("apart")["message"]
        assert {name: result.get("value") for name, result in done.items()} == {
            "odd" if me % 2 else "even": 7,
            "third": 7,
            "left": 7,
            "right": 7,
        }, done
        assert said["left"] == []
    assert sorted(os.listdir(tmp_path)) == ["even", "left", "odd", "right", "third"]
