"""The whole conformance kit, and a checkpoint saved and loaded by URL."""

import numpy as np
import pytest
from holdfast_flock import FlockBackend

from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests


@pytest.fixture
async def backend(tmp_path):
    return FlockBackend("flock://store/team/run", tmp_path)


class TestBackend(StorageBackendTests):
    pass


class TestCommit(CommitTests):
    pass


def test_a_job_picks_it_by_url(tmp_path, monkeypatch):
    import holdfast as hf

    monkeypatch.setenv("HOLDFAST_STORAGE_OPTIONS", f'{{"flock": {{"folder": "{tmp_path}"}}}}')
    monkeypatch.setenv("HOLDFAST_ROOT", "flock://store/team")
    with hf.training.Checkpointer("run") as checkpointer:
        checkpointer.save(7, {"w": np.arange(5.0)})
    with hf.training.Checkpointer("run") as checkpointer:
        np.testing.assert_array_equal(checkpointer.load()["w"], np.arange(5.0))
    assert hf.verify("run/7").ok


def test_a_missing_setting_is_named():
    import holdfast as hf

    with pytest.raises(ValueError, match="'folder'"):
        hf.save("flock://store/run/1", {"w": np.ones(1)})
