"""Opening a run of many steps on a disk: one look for all, and nothing counts that is no step."""

import logging
import os
import shutil

import numpy as np
import pytest

from holdfast_checkpointer import options
from holdfast_manager import training
from holdfast_manager.policies.preservation_policies import BestN, EveryNSteps, LatestN
from holdfast_metadata import CommitRecord
from holdfast_storage import open_backend
from holdfast_storage.testing.faulty import FaultyBackend

MANY = 40


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(run):
    return [entry.step for entry in run.checkpoints]


@pytest.fixture
def many(tmp_path):
    """A run of `MANY` steps; only the names differ."""
    place = tmp_path / "job"
    with training.Checkpointer(place) as run:
        run.save(0, state(0), metrics={"loss": 1.0})
    for step in range(1, MANY):
        shutil.copytree(place / "0", place / str(step))
    return place


@pytest.fixture
def views(monkeypatch):
    """The views that checkpointers act through, newest last; each counts every call."""
    made = []

    def connect(_, place):
        made.append(FaultyBackend(open_backend(str(place)), reads=True))
        return made[-1]

    monkeypatch.setattr(options.Context, "open_backend", connect)
    return made


def records_read(view):
    keys = [call.key for call in view.calls if call.key.endswith("_COMMIT.json")]
    return [int(key.split("/")[0]) for key in keys if key[0] != "."]


def test_opening_asks_once_for_all_steps_and_looks_into_the_newest(many, views):
    run = training.Checkpointer(many)
    assert steps(run) == list(range(MANY))
    assert run.latest.step == MANY - 1
    asked = [(call.operation, call.key) for call in views[-1].calls]
    assert asked[:2] == [("children", ""), ("names", "")]
    assert {key.split("/")[0] for _, key in asked[2:]} == {str(MANY - 1)}
    assert len(asked) == 5
    del views[-1].calls[:]
    assert run.checkpoints[3].time.year > 2000
    assert run.checkpoints[3].metrics == {"loss": 1.0}
    assert {call.key.split("/")[0] for call in views[-1].calls} == {"3"}


def test_retention_reads_the_record_of_what_it_keeps_once(many, views):
    run = training.Checkpointer(many, preservation_policy=EveryNSteps(2))
    for expected in (list(range(0, MANY, 2)), []):
        del views[-1].calls[:]
        verdicts = run.explain()
        assert [verdict.step for verdict in verdicts if verdict] == [*range(0, MANY, 2), MANY - 1]
        read = records_read(views[-1])
        assert sorted(step for step in read if step != MANY - 1) == expected
        assert read.count(MANY - 1) == 1  # the newest is looked into each time
    assert run.save(MANY, state(MANY))
    run.close()
    assert steps(run) == list(range(0, MANY + 1, 2))


def test_no_step_is_kept_in_place_of_one_that_another_process_removed(many):
    with training.Checkpointer(many, preservation_policy=LatestN(3)) as run:
        for step in (MANY - 2, MANY - 3):
            shutil.rmtree(many / str(step))
        assert run.save(MANY, state(MANY))
        run.wait()
        assert steps(run) == [MANY - 4, MANY - 1, MANY]
    assert steps(training.Checkpointer(many)) == [MANY - 4, MANY - 1, MANY]


def test_a_listed_step_that_is_gone_has_no_metrics_and_is_not_the_best(many):
    best = BestN(get_metric_fn=lambda metrics: metrics["loss"], n=1)
    run = training.Checkpointer(many, preservation_policy=best)
    shutil.rmtree(many / "7")
    assert run.checkpoints[7].metrics is None
    assert run.checkpoints[7].commit_timestamp_nsecs is None
    assert run.best.step != 7


def tombstone(folder):
    folder.mkdir()
    record = CommitRecord(state="retired", attempt="0" * 32, committed_ns=5)
    (folder / "_COMMIT.json").write_bytes(record.to_bytes())


def half_removed(folder):
    shutil.copytree(folder.parent / "0", folder)
    (folder / "_COMMIT.json").unlink()


def half_copied(folder):
    shutil.copytree(folder.parent / "0", folder)
    shutil.rmtree(folder / "state")


def torn_record(folder):
    shutil.copytree(folder.parent / "0", folder)
    (folder / "_COMMIT.json").write_bytes(b'{"sta')


def record_is_a_folder(folder):
    (folder / "_COMMIT.json").mkdir(parents=True)
    (folder / "_MANIFEST.jsonl").touch()


def run_in_a_run(folder):
    folder.mkdir()
    shutil.copytree(folder.parent / "0", folder / "0")


def abandoned_by_orbax(folder):
    folder = folder.with_name(f"{folder.name}.orbax-checkpoint-tmp-12")
    (folder / "default").mkdir(parents=True)
    (folder / "_CHECKPOINT_METADATA").write_text("{}")


def contents(path):
    return os.readlink(path) if path.is_symlink() else sorted(os.walk(path))


STRAYS = {
    "an empty folder": lambda folder: folder.mkdir(),
    "a file": lambda folder: folder.write_text("x"),
    "a foreign folder": lambda folder: (folder / "src").mkdir(parents=True),
    "a tombstone": tombstone,
    "half removed": half_removed,
    "half copied": half_copied,
    "a torn record": torn_record,
    "a record that is a folder": record_is_a_folder,
    "a run in a run": run_in_a_run,
    "left by a dead Orbax": abandoned_by_orbax,
    "a link to nothing": lambda folder: folder.symlink_to("nowhere"),
    "a link to a file": lambda folder: folder.symlink_to("0/_COMMIT.json"),
    "a link to the run": lambda folder: folder.symlink_to("."),
    "a link to itself": lambda folder: folder.symlink_to(folder.name),
}


@pytest.mark.parametrize("stray", STRAYS.values(), ids=STRAYS)
def test_what_is_no_step_influences_nothing(tmp_path, stray, caplog):
    place = tmp_path / "job"
    with training.Checkpointer(place) as run:
        for step in (0, 1):
            run.save(step, state(step))
    stray(place / "99")
    before = contents(place / "99")
    caplog.set_level(logging.ERROR)
    with training.Checkpointer(place, preservation_policy=LatestN(2)) as run:
        assert (steps(run), run.latest.step) == ([0, 1], 1)
        assert run.load()["w"][0] == 1
        assert run.should_save(2)
        assert run.save(2, state(2))
        run.wait()
        assert steps(run) == [1, 2]
    assert steps(training.Checkpointer(place)) == [1, 2]
    assert contents(place / "99") == before


def test_a_link_to_a_checkpoint_is_a_step_and_removing_it_removes_the_link(tmp_path):
    place = tmp_path / "job"
    with training.Checkpointer(tmp_path / "elsewhere") as other:
        other.save(5, state(5))
    place.mkdir()
    (place / "5").symlink_to(tmp_path / "elsewhere" / "5")
    with training.Checkpointer(place, preservation_policy=LatestN(1)) as run:
        assert run.load(5)["w"][0] == 5
        run.save(6, state(6))
        run.wait()
        assert steps(run) == [6]
    assert not os.path.lexists(place / "5")
    assert steps(training.Checkpointer(tmp_path / "elsewhere")) == [5]
