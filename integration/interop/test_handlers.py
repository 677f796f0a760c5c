"""Each handler's items, in both directions with Orbax."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

import holdfast as hf

ITEMS = {
    "state": ("Standard", {"w": np.arange(6.0).reshape(2, 3)}),
    "tree": ("PyTree", {"a": {"b": np.arange(3)}}),
    "config": ("Json", {"layers": [1, 2]}),
    "array": ("Array", np.arange(4)),
    "raw_key": ("JaxRandomKey", jax.random.PRNGKey(3)),
    "typed_key": ("JaxRandomKey", jax.random.key(3)),
    "legacy": ("NumpyRandomKey", np.random.RandomState(1).get_state()),
    "modern": ("NumpyRandomKey", np.random.RandomState(1).get_state(legacy=False)),
}


def saving(library):
    made = {
        name: getattr(library.args, f"{kind}Save")(item) for name, (kind, item) in ITEMS.items()
    }
    return library.args.Composite(**made)


def restoring(library, name):
    return library.args.Composite(**{name: getattr(library.args, f"{ITEMS[name][0]}Restore")()})


def assert_same(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        if isinstance(other, jax.Array) and jax.dtypes.issubdtype(other.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        assert np.array_equal(one, other)


@pytest.fixture(scope="module")
def by_holdfast(tmp_path_factory):
    path = tmp_path_factory.mktemp("by") / "holdfast"
    hf.Checkpointer(hf.CompositeCheckpointHandler()).save(path, args=saving(hf))
    return path


@pytest.fixture(scope="module")
def by_orbax(tmp_path_factory):
    path = tmp_path_factory.mktemp("by") / "orbax"
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=saving(ocp))
    return path


@pytest.mark.parametrize("name", ITEMS)
def test_orbax_reads_each_item_of_holdfast(by_holdfast, name):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(by_holdfast, args=restoring(ocp, name))[name]
    assert_same(found, ITEMS[name][1])


@pytest.mark.parametrize("name", ITEMS)
def test_holdfast_reads_each_item_of_orbax(by_orbax, name):
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler())
    assert_same(checkpointer.restore(by_orbax, args=restoring(hf, name))[name], ITEMS[name][1])


def test_both_restore_everything_without_arguments(by_holdfast, by_orbax):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        theirs = checkpointer.restore(by_holdfast)
    ours = hf.Checkpointer(hf.CompositeCheckpointHandler()).restore(by_orbax)
    for name, (_, item) in ITEMS.items():
        assert_same(theirs[name], item)
        assert_same(ours[name], item)


def test_a_message_goes_both_ways(tmp_path):
    from google.protobuf import struct_pb2

    message = struct_pb2.Struct()
    message.update({"name": "model"})
    hf.Checkpointer(hf.ProtoCheckpointHandler()).save(
        tmp_path / "ours", args=hf.args.ProtoSave(message)
    )
    with ocp.Checkpointer(ocp.ProtoCheckpointHandler("proto.pbtxt")) as checkpointer:
        args = ocp.args.ProtoRestore(struct_pb2.Struct)
        assert checkpointer.restore(tmp_path / "ours", args=args) == message
        checkpointer.save(tmp_path / "theirs", args=ocp.args.ProtoSave(message))
    args = hf.args.ProtoRestore(struct_pb2.Struct)
    found = hf.Checkpointer(hf.ProtoCheckpointHandler()).restore(tmp_path / "theirs", args=args)
    assert found == message


def test_items_of_the_v1_functions_go_both_ways(tmp_path):
    from orbax.checkpoint import v1

    hf.save_checkpointables(
        tmp_path / "ours", {"m": {"w": np.arange(3)}, "c": hf.args.JsonSave({"n": 1})}
    )
    found = v1.load_checkpointables(tmp_path / "ours")
    assert found["c"] == {"n": 1}
    assert_same(found["m"], {"w": np.arange(3)})
    v1.save_checkpointables(tmp_path / "theirs", {"m": {"w": np.arange(3)}, "c": {"n": 1}})
    ours = hf.load_checkpointables(tmp_path / "theirs")
    assert_same(ours["m"], {"w": np.arange(3)})
    assert ours["c"] == {"n": 1}
