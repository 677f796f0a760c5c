"""Arguments for single leaves: Orbax's objects here, and ours on what Orbax wrote."""

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp0
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding
from orbax.checkpoint import v1 as ocp

import holdfast as hf


def tree():
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    return {
        "w": jax.device_put(
            jnp.arange(32.0).reshape(8, 4), NamedSharding(mesh, PartitionSpec("x"))
        ),
        "n": np.arange(5, dtype=np.int64),
        "i": 3,
        "f": 2.5,
        "s": "text",
        "key": jax.random.key(1),
    }


@pytest.fixture(params=["orbax", "ours"])
def path(request, tmp_path):
    (ocp if request.param == "orbax" else hf).save(tmp_path / "c", tree())
    return tmp_path / "c"


def assert_restored(found):
    np.testing.assert_array_equal(found["w"], tree()["w"])
    assert found["w"].sharding == tree()["w"].sharding
    assert type(found["n"]) is np.ndarray
    assert [found["i"], found["f"], found["s"]] == [3, 2.5, "text"]
    assert jax.random.key_data(found["key"]).tolist() == [0, 1]


@pytest.mark.parametrize("library", [ocp0, hf], ids=["orbax's", "ours"])
def test_constructed_restore_args_ask_for_the_target(path, library):
    args = library.checkpoint_utils.construct_restore_args(tree())
    assert_restored(hf.load(path, restore_args=args))
    assert_restored(hf.load(path, tree(), restore_args=args))


def test_the_two_libraries_construct_the_same_arguments():
    ours = hf.checkpoint_utils.construct_restore_args(tree(), strict=False)
    theirs = ocp0.checkpoint_utils.construct_restore_args(tree(), strict=False)
    for name in tree():
        for field in ("restore_type", "dtype", "sharding", "strict"):
            assert getattr(ours[name], field, None) == getattr(theirs[name], field, None), name
    assert ours["w"].global_shape == theirs["w"].global_shape


def test_arguments_restore_as_asked_whoever_wrote_it(path):
    args = jax.tree.map(lambda _: hf.args.RestoreArgs(), tree())
    args["w"] = hf.args.ArrayRestoreArgs(
        sharding=SingleDeviceSharding(jax.devices()[5]),
        global_shape=(9, 2),
        strict=False,
        dtype=jnp.bfloat16,
    )
    args["n"] = ocp0.RestoreArgs(dtype=np.float32)
    args["i"] = hf.args.RestoreArgs(restore_type=float)
    found = hf.load(path, restore_args=args)
    expected = np.zeros((9, 2))
    expected[:8] = np.arange(32.0).reshape(8, 4)[:, :2]
    np.testing.assert_array_equal(found["w"].astype(np.float32), expected)
    assert found["w"].devices() == {jax.devices()[5]}
    assert found["n"].dtype == np.float32
    assert type(found["i"]) is float
    for name, wrong, message in (
        ("w", hf.args.ArrayRestoreArgs(global_shape=(9, 2)), r"\['w'\].*\[9, 2\].*\[8, 4\]"),
        ("w", hf.args.RestoreArgs(restore_type=int), r"\['w'\].*wants int"),
        ("n", ocp0.RestoreArgs(dtype=bool), r"\['n'\].*bool"),
    ):
        with pytest.raises(hf.errors.TreeMismatchError, match=message):
            hf.load(path, restore_args={**args, name: wrong})
    partial = hf.args.PyTreeRestore({"n": np.zeros(5)}, partial_restore=True)
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(path, args=hf.args.Composite(state=partial)).state
    assert found.keys() == {"n"}
    gone = hf.args.PyTreeRestore({"gone": np.zeros(5)}, partial_restore=True)
    with (
        hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer,
        pytest.raises(hf.errors.TreeMismatchError, match=r"\['gone'\]"),
    ):
        checkpointer.restore(path, args=hf.args.Composite(state=gone))


@pytest.mark.parametrize("kind", [ocp0.SaveArgs, hf.args.SaveArgs], ids=["orbax's", "ours"])
def test_orbax_reads_what_save_args_stored(tmp_path, kind):
    args = jax.tree.map(lambda _: kind(dtype=jnp.bfloat16), tree())
    args["w"] = kind(chunk_byte_size=16, shard_axes=(1,))
    args["n"] = kind(dtype=np.int8)
    hf.save_checkpointables(tmp_path / "c", {"state": hf.args.PyTreeSave(tree(), args)})
    found = ocp.load(tmp_path / "c", None)
    np.testing.assert_array_equal(found["w"], tree()["w"])
    assert found["w"].dtype == np.float32
    assert found["n"].dtype == np.int8
    np.testing.assert_array_equal(found["n"], np.arange(5))
    assert (found["i"], found["f"], found["s"]) == (3, 2.5, "text")
    described = ocp.metadata(tmp_path / "c").metadata
    assert described["w"].storage_metadata.chunk_shape == (2, 2)
    assert hf.metadata(tmp_path / "c").metadata["w"].chunk_shape == (2, 2)
