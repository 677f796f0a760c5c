"""A checkpoint moves between any two kinds of storage, by `hf.copy` and object by object."""

import asyncio
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, locate

STATE = {
    "w": jnp.arange(3000, dtype=jnp.bfloat16).reshape(30, 100),
    "key": jax.random.key(7),
    "layers": [np.ones(3), (1, "x", None)],
    "empty": np.zeros((0, 4)),
}
KINDS = ["local", "memory", "s3", "flat", "hierarchical"]


@pytest.fixture
def places(tmp_path, ministack, gcs, bucket_name, monkeypatch):
    """A place on each kind of storage."""
    ministack.make_bucket(bucket_name)
    gcs.make_bucket(f"{bucket_name}-flat")
    gcs.make_bucket(f"{bucket_name}-tree", hierarchical=True)
    for name, value in ministack.variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs.url)
    return {
        "local": str(tmp_path),
        "memory": f"memory://{bucket_name}",
        "s3": f"s3://{bucket_name}/team",
        "flat": f"gs://{bucket_name}-flat/team",
        "hierarchical": f"gs://{bucket_name}-tree/team",
    }


def assert_state(found):
    assert (np.asarray(found["w"]) == np.asarray(STATE["w"])).all()
    assert found["w"].dtype == jnp.bfloat16
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(STATE["key"])).all()
    assert found["layers"][1] == (1, "x", None)
    assert found["empty"].shape == (0, 4)


def test_a_copy_loads_wherever_it_came_from(places):
    for kind in KINDS:
        hf.save(f"{places[kind]}/source", STATE)
    for start, end in itertools.product(KINDS, KINDS):
        copied = f"{places[end]}/copies/{start}"
        hf.copy(f"{places[start]}/source", copied)
        assert_state(hf.load(copied))
        assert hf.verify(copied).ok
        with pytest.raises(FileExistsError):
            hf.copy(f"{places[start]}/source", copied)
        hf.copy(f"{places[start]}/source", copied, overwrite=True)
        assert hf.verify(copied).ok


def copy_objects(source, target):
    """What `rclone copy` does: every object, in the order of a listing."""
    from_backend, from_key = locate(source)
    to_backend, to_key = locate(target)

    async def run():
        found = [info.key async for info in from_backend.walk(from_key)]
        limit = asyncio.Semaphore(8)

        async def one(key):
            async with limit:
                await to_backend.put(to_key + key[len(from_key) :], await from_backend.get(key))

        await asyncio.gather(*(one(key) for key in found))

    get_loop().run(run())


def test_a_checkpoint_copied_object_by_object_loads(places):
    for kind in KINDS:
        hf.save(f"{places[kind]}/plain/source", STATE)
    for start, end in itertools.product(KINDS, KINDS):
        copied = f"{places[end]}/plain/from-{start}"
        copy_objects(f"{places[start]}/plain/source", copied)
        assert_state(hf.load(copied))
        assert hf.verify(copied).ok


def test_a_damaged_source_is_not_copied(places):
    for kind in KINDS:
        source = f"{places[kind]}/damaged"
        hf.save(source, {"w": jnp.arange(100_000.0)})
        backend, key = locate(source)

        async def flip(backend=backend, key=key):
            infos = [info async for info in backend.walk(key)]
            largest = max(infos, key=lambda info: info.size).key
            data = bytearray(await backend.get(largest))
            data[len(data) // 2] ^= 1
            await backend.put(largest, bytes(data))

        get_loop().run(flip())
        with pytest.raises(hf.errors.DamagedCheckpointError, match="was not copied"):
            hf.copy(source, f"{places['memory']}/copy-of-{kind}")
        assert not hf.is_checkpoint(f"{places['memory']}/copy-of-{kind}")
