"""kill -9 before operations on files, one by one; and a writer that sleeps is no dead one."""

import itertools
import os
import shutil
import signal
import time

import pytest

import holdfast as hf
from integration.crash.worker import state


def killed_everywhere(zygote, tmp_path, mode, original, name, stride):
    """Runs a worker on one copy after the other, killed before a later operation each time.

    Yields the copy's folder and what the worker reported; the last worker ends by itself.
    """
    for kill_at in itertools.count(1, stride):
        folder = tmp_path / str(kill_at)
        shutil.copytree(original, folder)
        log = tmp_path / f"{kill_at}.log"
        worker = zygote.start(mode, folder / name, log, kill_at)
        worker.join()
        said = worker.said()
        assert "failed:" not in said, said
        yield folder, said
        shutil.rmtree(folder)
        if "ended" in said:
            assert kill_at > 20, "hardly anything was counted"
            return


@pytest.mark.parametrize(("mode", "stride"), [("one-overwrite", 2), ("one-forced-save", 8)])
def test_an_overwrite_killed_before_an_operation_leaves_the_old_or_the_new(
    mode, stride, zygote, tmp_path, assert_whole, left_in, sweep
):
    original = tmp_path / "original"
    hf.save(original / "best", state(1))
    found = set()
    for folder, said in killed_everywhere(zygote, tmp_path, mode, original, "best", stride):
        number = hf.load(folder / "best")["number"]
        assert number == 2 or (number == 1 and "2" not in said)
        sweep(folder, grace_s=0)
        assert left_in(folder) == ["best"]
        assert_whole(hf.load(folder / "best"), number)
        assert hf.verify(folder / "best").ok
        found.add((number, "2" in said))
    assert {(1, False), (2, True)} <= found <= {(1, False), (2, False), (2, True)}
    if stride == 2:
        assert (2, False) in found  # between the commit and the word of it


def test_a_step_killed_before_an_operation_is_there_or_not_and_the_next_save_cleans_up(
    zygote, tmp_path, assert_whole, left_in
):
    original = tmp_path / "original" / "run"
    with hf.training.Checkpointer(original) as run:
        for step in (0, 1):
            run.save(step, state(step))
    seen = set()
    for folder, said in killed_everywhere(zygote, tmp_path, "one-step", original.parent, "run", 3):
        with hf.training.Checkpointer(folder / "run") as run:
            steps = tuple(entry.step for entry in run.checkpoints)
            assert "2" not in said or 2 in steps
            for step in steps:
                assert_whole(run.load(step), step)
            run.save(3, state(3))
        assert left_in(folder / "run") == sorted(map(str, (*steps, 3)))
        seen.add(steps)
    assert seen == {(0, 1), (0, 1, 2), (1, 2)}


def test_a_run_killed_before_an_operation_has_each_step_where_it_was_said_to_be(
    zygote, tmp_path, assert_whole, left_in
):
    """An overwrite, a pin, a removal to the trash, a restore and an unpin, one after another."""
    original = tmp_path / "original" / "run"
    with hf.training.Checkpointer(original) as run:
        for step in (0, 1, 2):
            run.save(step, state(step))
    last_words = set()
    for folder, said in killed_everywhere(
        zygote, tmp_path, "one-of-each", original.parent, "run", 17
    ):
        last_words.add(said[-1] if said else "")
        with hf.training.Checkpointer(folder / "run", trash=hf.training.Trash()) as run:
            steps = [entry.step for entry in run.checkpoints]
            assert {0, 2} <= set(steps)
            for step in steps:
                found = run.load(step)
                assert_whole(found, found["number"])
                assert found["number"] == step or (step == 2 and found["number"] == 20)
            assert "overwritten" not in said or run.load(2)["number"] == 20
            assert ("paper" in run.pins) or "pinned" not in said or "restored" in said
            assert ("paper" not in run.pins) or "unpinned" not in said
            assert 1 in steps or ("pinned" in said and "restored" not in said)
            if 1 not in steps:
                run.restore_from_trash(1)
                assert_whole(run.load(1), 1)
            run.save(3, state(3))
        ours = [name for name in left_in(folder / "run") if not name.isdecimal()]
        assert {name for name in ours if ".displaced-" not in name} <= {".trash", "_pins"}
    assert {"", "overwritten", "ended"} <= last_words
    assert len(last_words) > 3  # it died in most of them


def test_a_writer_that_sleeps_is_not_swept_and_commits_when_it_wakes(
    zygote, tmp_path, assert_whole, left_in, sweep
):
    folder = tmp_path / "folder"
    folder.mkdir()
    worker = zygote.start("one-slow-save", folder / "slow", tmp_path / "log", 300)
    deadline = time.monotonic() + 60
    while not list(folder.glob(".slow.attempt-*/_ATTEMPT.json")):
        assert time.monotonic() < deadline, worker.said()
        time.sleep(0.001)
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        before = left_in(folder)
        assert len(before) == 1
        assert before[0].startswith(".slow.attempt-")
        assert not sweep(folder, grace_s=0).removed
        assert left_in(folder) == before
        with pytest.raises(FileNotFoundError, match="never committed"):
            hf.load(folder / "slow")
    finally:
        os.kill(worker.pid, signal.SIGCONT)
    worker.wait_for("ended")
    assert left_in(folder) == ["slow"]
    found = hf.load(folder / "slow")
    assert found["large"].all()
    assert_whole(found, 2)
