"""Describing a checkpoint costs as many requests for ten leaves as for thousands, and no device."""

import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tensorstore as ts
from jax.sharding import NamedSharding, PartitionSpec

import holdfast as hf
from holdfast_checkpointer.functions import metadata_from
from holdfast_storage import locate
from holdfast_storage.testing import FaultyBackend
from integration.interop.trees import differences

SIZES = (1000, pytest.param(5000, marks=pytest.mark.slow))


def tree(leaves):
    return {"layers": {f"layer{n}": np.full(8, n, np.float32) for n in range(leaves)}}


def holdfast(path, leaves):
    hf.save(path, tree(leaves))


def orbax(**handler):
    def write(path, leaves):
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**handler)) as checkpointer:
            checkpointer.save(path, ocp.args.PyTreeSave(tree(leaves)))

    return write


WRITERS = {
    "holdfast": holdfast,
    "Orbax, zarr 2": orbax(use_zarr3=False),
    "Orbax, zarr 3": orbax(use_zarr3=True),
}


def file_reads():
    """How many times TensorStore has opened or read a file in this process."""
    found = 0
    for metric in ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/"):
        if metric["name"].endswith(("/read", "/open_read", "/list")):
            found += sum(value.get("value", 0) for value in metric.get("values", ()))
    return found


def requests_for(path, leaves):
    """All requests of one description: those of the backend, and those for arrays."""
    backend, final = locate(path)
    counted = FaultyBackend(backend, reads=True)
    before = file_reads()
    found = metadata_from(counted, final).metadata["layers"]
    requests = len(counted.calls) + file_reads() - before
    assert len(found) == leaves
    assert found[f"layer{leaves - 1}"].shape == (8,)
    return requests


@pytest.mark.parametrize("leaves", SIZES)
@pytest.mark.parametrize("writer", WRITERS)
def test_metadata_costs_the_same_requests_whatever_the_tree(writer, leaves, tmp_path):
    WRITERS[writer](tmp_path / "small", 3)
    WRITERS[writer](tmp_path / "large", leaves)
    requests = requests_for(tmp_path / "large", leaves)
    assert requests == requests_for(tmp_path / "small", 3)
    assert requests <= 15


@pytest.mark.parametrize("use_ocdbt", [True, False], ids=["database", "files"])
@pytest.mark.parametrize("use_zarr3", [True, False], ids=["zarr3", "zarr2"])
def test_shapes_dtypes_and_chunks_are_those_of_the_arrays(use_ocdbt, use_zarr3, tmp_path):
    import ml_dtypes

    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    sharded = jax.device_put(np.zeros((4, 6), np.int32), NamedSharding(mesh, PartitionSpec("x")))
    saved = {
        "sharded": sharded,
        "bf16": np.ones((3, 1), ml_dtypes.bfloat16),
        "f8": np.ones(5, ml_dtypes.float8_e4m3fn),
        "bool": np.ones((2, 2), bool),
        "complex": np.ones(2, np.complex64),
        "rank 0": np.asarray(3.5),
        "number": 7,
        "key": jax.random.key(1),
    }
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=use_ocdbt, use_zarr3=use_zarr3)
    with ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(tmp_path / "c", ocp.args.PyTreeSave(saved))
    found = hf.metadata(tmp_path / "c").metadata
    told = {name: (leaf.shape, leaf.dtype) for name, leaf in found.items()}
    expected = {
        name: (np.shape(leaf), np.asarray(leaf).dtype)
        for name, leaf in saved.items()
        if name not in ("key", "number")
    }
    expected |= {"key": ((), saved["key"].dtype), "number": ((), told["number"][1])}
    assert (
        differences({n: str(t) for n, t in told.items()}, {n: str(e) for n, e in expected.items()})
        == []
    )
    assert found["sharded"].chunk_shape == (2, 6)
    assert found["sharded"].sharding == sharded.sharding


def test_metadata_that_is_damaged_names_the_leaf(tmp_path):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as checkpointer:
        checkpointer.save(tmp_path / "c", ocp.args.PyTreeSave({"a": np.ones(2), "b": np.ones(2)}))
    (tmp_path / "c/b/.zarray").write_text("{}")
    with pytest.raises(hf.errors.DamagedCheckpointError, match="'b'"):
        hf.metadata(tmp_path / "c")
    (tmp_path / "c/b/.zarray").unlink()
    with pytest.raises(hf.errors.DamagedCheckpointError, match=r"'b'.*missing"):
        hf.load(tmp_path / "c")


WITHOUT_DEVICES = """
import sys
import jax
from jax._src import xla_bridge

def touched(*args, **kwargs):
    raise AssertionError("a device was asked for")

for name in ("devices", "local_devices", "device_count", "local_device_count", "process_count"):
    setattr(jax, name, touched)
for name in ("backends", "get_backend", "devices", "local_devices", "process_count"):
    setattr(xla_bridge, name, touched)

import holdfast as hf

folder = sys.argv[1]
for name in ("ours", "orbax"):
    path = f"{folder}/{name}"
    found = hf.metadata(path)
    assert found.metadata["sharded"].shape == (4, 6), found
    assert str(found.metadata["key"].dtype).startswith("key<"), found
    assert hf.checkpointables_metadata(path).metadata
    assert hf.is_checkpoint(path)
    assert hf.verify(path).ok, hf.verify(path)
for name in ("flat", "flat orbax"):
    for make in (hf.StandardCheckpointer, hf.PyTreeCheckpointer):
        with make() as checkpointer:
            found = checkpointer.metadata(f"{folder}/{name}").item_metadata
            assert found["sharded"].shape == (4, 6), found
with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
    for name in ("ours", "orbax"):
        found = checkpointer.metadata(f"{folder}/{name}").item_metadata
        assert found["state"]["sharded"].shape == (4, 6), found
with hf.training.Checkpointer(f"{folder}/run") as run:
    assert run.latest.step == 3
    assert run.metadata(3).metadata["sharded"].shape == (4, 6)
assert not xla_bridge._backends
print("described")
"""


def test_no_device_is_touched_to_describe_or_verify(tmp_path):
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    sharded = jax.device_put(np.zeros((4, 6), np.int32), NamedSharding(mesh, PartitionSpec("x")))
    state = {"sharded": sharded, "key": jax.random.key(1, impl="rbg"), "n": 3}
    plain = {"sharded": sharded, "n": 3}
    hf.save(tmp_path / "ours", state)
    ocp.v1.save(tmp_path / "orbax", state)
    with hf.StandardCheckpointer() as ours, ocp.StandardCheckpointer() as theirs:
        ours.save(tmp_path / "flat", plain)
        theirs.save(tmp_path / "flat orbax", plain)
    with hf.training.Checkpointer(tmp_path / "run") as run:
        run.save(3, state)
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_DEVICES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "described\n"), ended.stderr[-3000:]
