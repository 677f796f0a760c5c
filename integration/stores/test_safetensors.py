"""Safetensors files on every kind of object store: written, listed, read by byte ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
from jax.sharding import NamedSharding, PartitionSpec

import holdfast as hf
from holdfast_storage import get_loop, locate
from integration.servers.proxy import running_proxy

W = np.arange(1 << 18, dtype=np.float32).reshape(1024, 256)  # 1 MiB
STATE = {"w": W, "layers": [np.arange(4, dtype=np.int8), np.ones((2, 3), np.float16)]}
NAMES = ["layers.0", "layers.1", "w"]


@pytest.fixture(params=["s3", "flat", "hierarchical"])
def place(request, ministack, gcs, bucket_name, monkeypatch):
    """A place on each kind of store."""
    if request.param == "s3":
        ministack.make_bucket(bucket_name)
        for name, value in ministack.variables.items():
            monkeypatch.setenv(name, value)
        return f"s3://{bucket_name}/team"
    gcs.make_bucket(bucket_name, hierarchical=request.param == "hierarchical")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return f"gs://{bucket_name}/team"


def stored(path):
    backend, key = locate(path)
    return get_loop().run(backend.get(key))


def test_a_checkpoint_goes_out_as_shards_and_comes_back(place):
    hf.save(f"{place}/c", STATE)
    hf.export_safetensors(f"{place}/c", f"{place}/out", max_shard_bytes=16, metadata={"a": "b"})
    first = stored(f"{place}/out/model-00001-of-00002.safetensors")
    assert sorted(name for name, _ in safetensors.deserialize(first)) == ["layers.0", "layers.1"]
    assert sorted(hf.metadata(f"{place}/out").metadata) == NAMES
    found = hf.load(f"{place}/out", STATE)
    assert all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(STATE)))
    with pytest.raises(FileExistsError):
        hf.export_safetensors(STATE, f"{place}/out")
    hf.export_safetensors({"w": W + 1}, f"{place}/out", overwrite=True)
    assert list(hf.load(f"{place}/out")) == ["w"]
    assert hf.is_checkpoint(f"{place}/out")
    assert not hf.is_checkpoint(f"{place}/nothing.safetensors")


def test_one_file_is_found_by_its_own_path_and_a_checkpoint_is_not_written_into(place):
    hf.export_safetensors(STATE, f"{place}/deep/model.safetensors")
    assert sorted(hf.load(f"{place}/deep/model.safetensors")) == NAMES
    assert sorted(hf.load(f"{place}/deep")) == NAMES
    hf.save(f"{place}/c", STATE)
    with pytest.raises(FileExistsError, match="checkpoint"):
        hf.export_safetensors(STATE, f"{place}/c", overwrite=True)


def test_a_part_is_read_by_byte_ranges(ministack, bucket_name, monkeypatch):
    ministack.make_bucket(bucket_name)
    with running_proxy(ministack.endpoint) as proxy:
        for name, value in (ministack.variables | {"AWS_ENDPOINT_URL": proxy.url}).items():
            monkeypatch.setenv(name, value)
        path = f"s3://{bucket_name}/team/x.safetensors"
        hf.export_safetensors({"w": W, "z": W}, path)
        rows = NamedSharding(jax.make_mesh((1,), ("x",)), PartitionSpec("x"))
        proxy.clear()
        found = hf.load(path, {"w": jax.ShapeDtypeStruct(W.shape, jnp.float32, sharding=rows)})
        assert np.array_equal(found["w"], W)
        # Is a checkpoint here, or a file; its header, one tensor; is it the same file still.
        assert len(proxy.requests) <= 7, proxy.requests
