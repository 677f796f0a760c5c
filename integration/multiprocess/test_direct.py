"""Handlers called directly, or by handlers of users', in several processes."""

import os

import holdfast as hf


def test_handlers_that_are_called_directly_save_together(run, tmp_path):
    for said in run(2, "direct.call_handlers", str(tmp_path)):
        assert said["done"] == dict.fromkeys(said["done"])
        assert len(said["done"]) == 13
        assert "DisagreementError" in said["differs"]["error"], said
        assert "step" in said["differs"]["message"]
        assert "ValueError" in said["bad"]["error"], said
        assert "no sharding on process 1" in said["elsewhere"]["message"], said
        assert "FileExistsError" in said["taken"]["error"], said
        assert said["left"] == []
    assert not {"bad", "differs", "elsewhere"} & set(os.listdir(tmp_path))


def test_handlers_of_users_leave_parts_to_those_of_holdfast(run, tmp_path):
    for said in run(2, "direct.wrap_handlers", str(tmp_path)):
        assert said["done"] == dict.fromkeys(said["done"])
        assert "DisagreementError" in said["differs"]["error"], said
        assert "tree['step']" in said["differs"]["message"], said
        assert said["left"] == []
    assert not (tmp_path / "differs").exists()
    for name in ("all", "one", "parts", "extended-whole", "named", "several", "alone-0", "alone-1"):
        assert hf.verify(tmp_path / name).ok


def test_parts_are_saved_together_and_exports_are_written_once(run, tmp_path):
    for me, said in enumerate(run(2, "direct.save_in_parts", str(tmp_path))):
        done = said["done"]
        for name in ("first", "second", "finalize", "load"):
            assert done[name].get("message") is None, done[name]
        assert "ValueError" in done["again"]["error"]
        assert "saved already" in done["again"]["message"] or "rows" in done["again"]["message"]
        assert "ValueError" in done["bad"]["error"]
        assert "DisagreementError" in done["differs"]["error"]
        assert "FileNotFoundError" in done["nothing"]["error"]
        assert "FileExistsError" in done["twice"]["error"]
        assert done["whole"]["value"] == ["n", "same"]
        assert "hf.save(path, tree)" in done["scattered"]["message"], done["scattered"]
        assert "FileExistsError" in done["occupied"]["error"]
        assert done["stored"]["value"] == ["n", "rows"]
        if me == 0:
            assert done["one"]["value"] == ["n", "rows"]
    assert hf.verify(tmp_path / "parts").ok
    assert list(hf.load(tmp_path / "one")["n"]) == [0, 1, 2]
