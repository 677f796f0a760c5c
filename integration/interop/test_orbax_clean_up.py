"""What Orbax's `cleanup_tmp_directories` does to a run of ours where it commits by a file.

Such stores are buckets. Orbax's own class for them runs here over a folder that is laid out as
a bucket is: what it deletes is decided by names, and docs/migration/from-orbax.md lists it.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import holdfast as hf
from holdfast_checkpointer import options
from holdfast_local import LocalBackend
from holdfast_metadata import ManifestEntry
from holdfast_storage import get_loop
from holdfast_storage.commit import PointerCommit

FILES = [ManifestEntry("x", 4), ManifestEntry("y", 4)]
keep = hf.training.preservation_policies


class LikeABucket(LocalBackend):
    """Commits by the record alone, keeps hints, and Orbax commits by a file."""

    orbax_commits_by_file = True

    def __init__(self, root):
        super().__init__(root)
        self.hints = dataclasses.replace(self.hints, round_trips=True)

    async def commit_strategy(self):
        return PointerCommit(self)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(options.Context, "open_backend", lambda *_: LikeABucket(str(tmp_path)))
    return tmp_path


def state(value):
    return {"w": jnp.full(3, float(value))}


def clean_up(path):
    """As `cleanup_tmp_directories=True` does on a bucket."""
    chosen = ocp.CheckpointManagerOptions(
        cleanup_tmp_directories=True,
        temporary_path_class=ocp.path.atomicity.CommitFileTemporaryPath,
    )
    with ocp.CheckpointManager(path, options=chosen) as manager:
        manager._cleanup_tmp_directory_future.result()  # as its first save would


def steps(run):
    return [entry.step for entry in run.checkpoints]


def test_steps_pins_and_the_run_s_metadata_stay_and_the_rest_is_made_again(bucket):
    with hf.training.Checkpointer(bucket, custom_metadata={"who": "us"}) as run:
        for step in (1, 2, 3):
            run.save(step, state(step))
        run.pin(1, "first")
    assert (bucket / "_committed").is_dir()
    clean_up(bucket)
    assert not (bucket / "_committed").exists()
    with hf.training.Checkpointer(bucket, preservation_policy=keep.LatestN(1)) as run:
        assert steps(run) == [1, 2, 3]
        assert dict(run.pins) == {"first": 1}
        assert run.root_metadata().custom_metadata == {"who": "us"}
        with pytest.raises(hf.errors.InvalidKeyError, match="cannot name a pin"):
            run.pin(1, "commit_success.txt")
        run.save(4, state(4))
        run.wait()
        assert steps(run) == [1, 4]
        np.testing.assert_array_equal(run.load(1)["w"], state(1)["w"])
    assert sorted(path.name for path in (bucket / "_committed").iterdir()) == ["1", "4"]


def test_a_writer_that_holds_the_run_keeps_it(bucket):
    with hf.training.Checkpointer(bucket) as run:
        run.save(1, state(1))
        clean_up(bucket)
        assert run.save(2, state(2))
        assert steps(hf.training.Checkpointer(bucket)) == [1, 2]
    assert "commit_success.txt" in {path.name for path in (bucket / "_lease").iterdir()}


def test_a_save_that_is_under_way_is_lost_and_says_so(bucket):
    backend = LikeABucket(str(bucket))

    async def begin():
        strategy = await backend.commit_strategy()
        begun = await strategy.begin("5")
        await strategy.area(begun).put("x", b"data")
        return strategy, begun

    strategy, begun = get_loop().run(begin())
    clean_up(bucket)
    assert not (bucket / "5").exists()

    async def go_on():
        area = strategy.area(begun)
        await area.put("y", b"data")
        await strategy.seal(begun, area)
        await strategy.commit(begun, FILES)

    with pytest.raises(hf.errors.StorageError):
        get_loop().run(go_on())
    assert steps(hf.training.Checkpointer(bucket)) == []


def test_steps_in_the_trash_are_lost_and_those_of_the_run_are_not(bucket):
    how = {"trash": hf.training.Trash(), "preservation_policy": keep.LatestN(1)}
    with hf.training.Checkpointer(bucket, **how) as run:
        for step in (1, 2):
            run.save(step, state(step))
        run.wait()
        assert [entry.step for entry in run.trash] == [1]
    clean_up(bucket)
    with hf.training.Checkpointer(bucket, **how) as run:
        assert steps(run) == [2]
        assert list(run.trash) == []
        run.save(3, state(3))
        run.wait()
        assert [entry.step for entry in run.trash] == [2]
