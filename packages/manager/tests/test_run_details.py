"""What programs written for Orbax's v1 Checkpointer look at in a run."""

import pathlib

import numpy as np

from holdfast_checkpointer import functions
from holdfast_manager import training
from holdfast_manager.place import Place
from holdfast_manager.steps import CheckpointMetadata


def test_the_place_of_a_run_and_of_a_step_joins_as_a_path_and_is_taken_everywhere(place):
    with training.Checkpointer(place) as run:
        run.save(1, {"w": np.ones(2)})
        assert run.directory == place
        assert run.directory / "1" == f"{place}/1" == run.latest.path == run.metadata(1).path
        assert run.root_metadata().directory / pathlib.PurePath("a") / "b" == f"{place}/a/b"
        assert functions.is_checkpoint(run.directory / "1")
        assert functions.load(run.latest.path)["w"].tolist() == [1, 1]
        assert run.latest.path.name == "1"
    assert Place("s3://bucket/") / "run" == "s3://bucket/run"
    assert isinstance(Place("a") / "b" / "c", Place)


def test_a_local_place_is_a_path_to_python(tmp_path):
    with training.Checkpointer(tmp_path / "run") as run:
        run.save(1, {"a": 1})
        assert pathlib.Path(run.directory) == tmp_path / "run"
        assert (pathlib.Path(run.directory) / "1").is_dir()


def test_what_describes_a_step_is_one_of_its_metadata_whichever_call_tells_it(place):
    with training.Checkpointer(place) as run:
        run.save(1, {"a": 1}, metrics={"loss": 0.5}, custom_metadata={"note": "x"})
        listed, described = run.latest, run.metadata(1)
        items = run.checkpointables_metadata(1)
    for found in (listed, described, items):
        assert isinstance(found, CheckpointMetadata)
        assert (found.step, found.metrics) == (1, {"loss": 0.5})
        assert found.commit_timestamp.tzinfo is not None
        assert found.commit_timestamp_nsecs > 0
    assert (listed.metadata, listed.init_timestamp_nsecs, listed.custom_metadata) == (None,) * 3
    assert described.custom_metadata == {"note": "x"}
    assert described.init_timestamp_nsecs > 0
    assert listed != described
    assert listed == training.Checkpointer(place).latest


def test_metadata_of_a_run_is_told_before_it_is_stored_and_the_first_stays(place):
    given = {"team": "a"}
    run = training.Checkpointer(place, custom_metadata=given)
    assert run.root_metadata().custom_metadata == {"team": "a"}
    assert training.Checkpointer(place).root_metadata().custom_metadata == {}  # nothing is stored
    given["team"] = "changed"
    run.save(1, {"a": 1})
    late = training.Checkpointer(place, custom_metadata={"team": "b"})
    assert late.root_metadata().custom_metadata == {"team": "a"}
    late.save(2, {"a": 2})
    assert late.root_metadata().custom_metadata == {"team": "a"}
    run.close()
    late.close()
