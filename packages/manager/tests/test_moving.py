"""A run is files: it is gone on with wherever they are copied to."""

import pathlib
import uuid

import numpy as np
import pytest

from holdfast_checkpointer.functions import verify
from holdfast_manager import training
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_storage import get_loop, open_backend


def copy_by_file(source, target):
    """What rclone or rsync does: each object under its own name, none with a condition."""

    async def copy():
        there, here = open_backend(source), open_backend(target)
        async for info in there.walk(""):
            await here.put(info.key, await there.get(info.key))

    get_loop().run(copy())


@pytest.mark.parametrize("way", ["from a disk to a bucket", "from a bucket to a disk"])
def test_a_run_goes_on_where_it_was_copied_to(way, tmp_path):
    disk, bucket = str(tmp_path / "run"), f"memory://moved-{uuid.uuid4().hex}/run"
    source, target = (disk, bucket) if way.startswith("from a disk") else (bucket, disk)
    with training.Checkpointer(source, custom_metadata={"team": 7}) as old:
        for step in (1, 2, 3):
            old.save(step, {"w": np.full(5, step)}, metrics={"loss": step / 10}, force=True)
        old.pin(1, "paper")
        old.delete(2)
    copy_by_file(source, target)
    with training.Checkpointer(target, preservation_policy=LatestN(1)) as new:
        assert [entry.step for entry in new.checkpoints] == [1, 3]
        assert all(verify(entry.path) for entry in new.checkpoints)
        assert (new.pins, new.latest.metrics) == ({"paper": 1}, {"loss": 0.3})
        assert new.root_metadata().custom_metadata == {"team": 7}
        assert new.load()["w"].tolist() == [3] * 5
        new.save(4, {"w": np.full(5, 4)})
        new.wait()
        assert [entry.step for entry in new.checkpoints] == [1, 4]
        new.save(4, {"w": np.full(5, 5)}, overwrite=True, force=True)
        assert new.load(4)["w"].tolist() == [5] * 5
    with training.Checkpointer(target) as again:
        assert [entry.step for entry in again.checkpoints] == [1, 4]
    assert pathlib.Path(disk).is_dir()
