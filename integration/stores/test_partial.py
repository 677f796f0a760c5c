"""A checkpoint is saved in parts on each kind of object store."""

import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf


@pytest.fixture(params=["s3", "flat", "hierarchical"])
def place(request, ministack, gcs, bucket_name, monkeypatch):
    """A folder in a bucket."""
    if request.param == "s3":
        ministack.make_bucket(bucket_name)
        for name, value in ministack.variables.items():
            monkeypatch.setenv(name, value)
        return f"s3://{bucket_name}/team"
    gcs.make_bucket(bucket_name, hierarchical=request.param == "hierarchical")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return f"gs://{bucket_name}/team"


def test_parts_are_merged_by_reference_and_committed_once(place):
    path = f"{place}/m"
    large = np.arange(300_000, dtype=np.float32).reshape(300, 1000)
    first = hf.partial.save_async(path, {"params": {"encoder": large}})
    second = hf.partial.save_async(path, {"params": {"decoder": jnp.ones(5)}, "step": 3})
    first.result()
    second.result()
    with pytest.raises(hf.errors.PartialSaveReplacementError, match=r"\['step'\]"):
        hf.partial.save(path, {"step": 4})
    assert not hf.is_checkpoint(path)
    hf.partial.finalize(path)
    found = hf.load(path)
    assert np.array_equal(found["params"]["encoder"], large)
    assert found["params"]["decoder"].tolist() == [1.0] * 5
    assert found["step"] == 3
    assert hf.verify(path).ok
    with pytest.raises(FileExistsError):
        hf.partial.save(path, {"more": 1})
    hf.delete(path)
    hf.partial.save(path, {"again": 1})
    hf.partial.finalize(path)
    assert hf.load(path, select="again") == {"again": 1}
