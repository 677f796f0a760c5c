"""Targets under restore arguments, partial, padded and truncated, and elsewhere."""

import collections
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec, SingleDeviceSharding

import holdfast as hf
import holdfast_checkpointer as hc
from holdfast.checkpoint_utils import construct_restore_args
from holdfast_checkpointer.args import (
    ArrayRestore,
    ArrayRestoreArgs,
    ArraySave,
    PyTreeRestore,
    PyTreeSave,
    RestoreArgs,
    SaveArgs,
    SingleReplicaArrayRestoreArgs,
    StandardRestore,
)
from holdfast_checkpointer.arrays.options import LoadAndBroadcastOptions
from holdfast_checkpointer.errors import (
    PlacementError,
    TreeMismatchError,
    UnsupportedOptionError,
)

Pair = collections.namedtuple("Pair", "first second")
Swapped = collections.namedtuple("Pair", "second first")


def struct(*shape, dtype=np.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def on(device):
    return SingleDeviceSharding(jax.devices()[device])


def restore(place, **fields):
    with hc.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(place, args=PyTreeRestore(**fields))


def standard(place, **fields):
    with hc.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(place, args=StandardRestore(**fields))


def tree():
    return {
        "w": jnp.arange(12.0).reshape(3, 4),
        "n": np.arange(5, dtype=np.int16),
        "g": np.float32(1.5),
        "i": 3,
        "f": 2.5,
        "s": "text",
        "t": (1, [2]),
        "none": None,
        "key": jax.random.key(1),
    }


@pytest.fixture
def saved(place):
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, tree())
    return place


# --- RestoreArgs ---------------------------------------------------------------------


def blank():
    return jax.tree.map(lambda _: RestoreArgs(), tree())


def test_arguments_without_an_item_are_the_target(saved):
    args = blank()
    args["w"] = ArrayRestoreArgs(sharding=on(3), dtype=jnp.bfloat16, global_shape=(3, 4))
    args["n"] = RestoreArgs(restore_type=jax.Array, dtype=np.int32)
    args["g"] = RestoreArgs(restore_type=float)
    args["i"] = RestoreArgs(dtype=np.float32)
    args["f"] = RestoreArgs(restore_type=np.ndarray)
    args["s"] = RestoreArgs(restore_type=str)
    args["t"] = RestoreArgs(restore_type=type(...))
    found = restore(saved, restore_args=args)
    assert found["w"].dtype == jnp.bfloat16
    assert found["w"].devices() == {jax.devices()[3]}
    assert isinstance(found["n"], jax.Array)
    assert found["n"].dtype == np.int32
    assert type(found["g"]) is float
    assert found["g"] == 1.5
    assert found["i"] == 3
    assert type(found["i"]) is int
    assert type(found["f"]) is np.ndarray
    assert found["s"] == "text"
    assert found["t"] is ...
    assert jax.random.key_data(found["key"]).tolist() == [0, 1]


def test_arguments_win_over_the_item_where_they_say_something(saved):
    item = {**tree(), "w": struct(3, 4, sharding=on(1)), "n": struct(5, dtype=np.int32)}
    args = blank()
    args["w"] = ArrayRestoreArgs(dtype=jnp.float16)
    args["n"] = RestoreArgs(restore_type=np.ndarray)
    found = restore(saved, item=item, restore_args=args)
    assert found["w"].dtype == np.float16
    assert found["w"].devices() == {jax.devices()[1]}
    assert type(found["n"]) is np.ndarray
    assert found["n"].dtype == np.int32


def test_a_mesh_and_its_axes_are_a_sharding(place):
    hc.save(place, {"w": jnp.arange(16.0)})
    mesh = jax.make_mesh((8,), ("x",))
    for kind in (ArrayRestoreArgs, SingleReplicaArrayRestoreArgs):
        args = kind(mesh=mesh, mesh_axes=PartitionSpec("x"))
        found = hc.load(place, None, restore_args={"w": args})["w"]
        assert found.sharding.is_equivalent_to(NamedSharding(mesh, PartitionSpec("x")), 1)
    with pytest.raises(ValueError, match="go together"):
        ArrayRestoreArgs(mesh=mesh)


def test_shape_is_another_name_of_global_shape_and_they_may_not_differ():
    assert ArrayRestoreArgs(shape=[2, 3]).global_shape == (2, 3)
    assert ArrayRestoreArgs(global_shape=(2,)).shape == (2,)
    assert ArrayRestoreArgs(global_shape=(2,), shape=[2]).shape == (2,)
    with pytest.raises(ValueError, match="must be the same"):
        ArrayRestoreArgs(global_shape=(2,), shape=(3,))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("w", ArrayRestoreArgs(global_shape=(4, 4)), r"\['w'\].*shape \[4, 4\].*\[3, 4\]"),
        ("w", RestoreArgs(dtype=np.int32), r"\['w'\].*int32"),
        ("w", RestoreArgs(restore_type=int), r"\['w'\].*wants int"),
        ("w", RestoreArgs(restore_type="jax.Array"), r"\['w'\].*must be a type"),
        ("w", RestoreArgs(dtype="float33"), r"\['w'\].*dtype 'float33', which is none"),
        ("s", ArrayRestoreArgs(), r"\['s'\].*wants an array"),
        ("g", RestoreArgs(restore_type=int), r"\['g'\]: 1.5 is no exact int"),
        ("key", RestoreArgs(restore_type=np.ndarray), r"\['key'\].*PRNG keys"),
        ("key", RestoreArgs(dtype=np.float32), r"\['key'\].*PRNG keys"),
        ("t", RestoreArgs(), r"\['t'\].*container"),
    ],
)
def test_arguments_that_do_not_fit_name_the_leaf(saved, name, args, message):
    with pytest.raises(TreeMismatchError, match=message):
        restore(saved, restore_args={**blank(), name: args})


def test_arguments_of_another_structure_or_kind_are_refused(saved):
    with pytest.raises(ValueError, match="structure of the item"):
        restore(saved, item=tree(), restore_args={"w": RestoreArgs()})
    with pytest.raises(ValueError, match="must hold RestoreArgs"):
        restore(saved, item=tree(), restore_args=tree())
    with pytest.raises(TreeMismatchError, match="in the target, not in the checkpoint"):
        restore(saved, restore_args={**blank(), "more": RestoreArgs()})


@pytest.mark.parametrize(
    "fields",
    [
        {"item": tree(), "transforms": {"w": "n"}},
        {"item": tree(), "legacy_transform_fn": {}},
        {"item": tree(), "transforms": {}, "transforms_default_to_original": False},
        {"transforms": {}},
    ],
)
def test_transforms_are_refused_with_what_does_the_same(saved, fields):
    with pytest.raises(UnsupportedOptionError, match="rename=.*select=.*partial_restore"):
        restore(saved, **fields)


def test_transforms_of_which_there_are_none_ask_for_a_part(saved):
    assert restore(saved, item={"i": 0, "t": (0, [0])}, transforms={}) == {"i": 3, "t": (1, [2])}
    with pytest.raises(TreeMismatchError, match="in the target, not in the checkpoint"):
        restore(saved, item={"i": 0, "more": 0}, transforms={})


def test_the_type_of_an_array_is_a_restore_type(saved):
    args = {**blank(), "w": RestoreArgs(restore_type=type(jnp.zeros(1)))}
    args["n"] = ArrayRestoreArgs(restore_type=type(jnp.zeros(1)))
    found = restore(saved, restore_args=args)
    assert isinstance(found["w"], jax.Array)
    assert isinstance(found["n"], jax.Array)


@pytest.mark.parametrize("spec", [PartitionSpec(), PartitionSpec("x")])
def test_an_array_goes_to_the_memory_that_its_sharding_names(place, spec):
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), spec, memory_kind="pinned_host")
    values = np.arange(16, dtype=np.float32)
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, {"a": jax.device_put(values, sharding)})
    for found in (
        restore(place, restore_args={"a": ArrayRestoreArgs(sharding=sharding)}),
        hf.load(place, {"a": struct(16, sharding=sharding)}),
    ):
        assert found["a"].sharding == sharding
        np.testing.assert_array_equal(found["a"], values)


def test_a_placeholder_skips_its_leaf_under_any_arguments(saved):
    item = {**tree(), "w": ..., "n": ...}
    args = {**blank(), "w": ArrayRestoreArgs(), "n": RestoreArgs(restore_type=np.ndarray)}
    found = restore(saved, item=item, restore_args=args)
    assert (found["w"], found["n"], found["i"]) == (..., ..., 3)


def test_arguments_may_stand_where_the_tree_has_no_leaf(place):
    item = {"a": {}, "b": 3, "c": None, "d": [1, []], "e": Pair({}, ())}
    plain = {"a": RestoreArgs(), "b": RestoreArgs(), "c": RestoreArgs(), "d": [RestoreArgs()] * 2}
    with hc.PyTreeCheckpointer() as checkpointer:
        save_args = jax.tree.map(lambda _: SaveArgs(), plain) | {"e": SaveArgs()}
        checkpointer.save(place, args=PyTreeSave(item, save_args=save_args))
    args = plain | {"e": RestoreArgs()}
    assert restore(place, item=item, restore_args=args) == item
    assert restore(place, restore_args=args) == item
    with pytest.raises(ValueError, match="structure of the item"):
        restore(place, item=item, restore_args=args | {"a": {"more": RestoreArgs()}})
    with pytest.raises(ValueError, match="structure of the item"):
        restore(place, item=item, restore_args=args | {"a": 5})
    with pytest.raises(TreeMismatchError, match="a leaf, the checkpoint None"):
        restore(place, item=item | {"c": 1})


def test_arguments_may_be_set_and_inherited_from(place):
    @dataclasses.dataclass
    class More(PyTreeSave):
        extra: int = 7

    args = More({"n": np.arange(3)}, save_args={"n": SaveArgs()})
    args.save_args["n"].dtype = np.float32
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, args=args)
    wanted = RestoreArgs()
    wanted.restore_type = jax.Array
    found = restore(place, restore_args={"n": wanted})["n"]
    assert (found.dtype, args.extra, isinstance(found, jax.Array)) == (np.float32, 7, True)


def test_the_array_handler_takes_arguments_too(place):
    with hc.Checkpointer(hc.ArrayCheckpointHandler()) as checkpointer:
        checkpointer.save(place, args=ArraySave(np.arange(6.0).reshape(2, 3)))
        args = ArrayRestoreArgs(sharding=on(2), dtype=np.float32)
        found = checkpointer.restore(place, args=ArrayRestore(restore_args=args))
        assert found.devices() == {jax.devices()[2]}
        wide = ArrayRestoreArgs(dtype=np.float32, global_shape=(3, 2), strict=False)
        found = checkpointer.restore(place, args=ArrayRestore(restore_args=wide))
        np.testing.assert_array_equal(found, [[0, 1], [3, 4], [0, 0]])


# --- construct_restore_args ----------------------------------------------------------


def test_a_target_gives_the_arguments_that_ask_for_it():
    mesh = jax.make_mesh((8,), ("x",))
    sharding = NamedSharding(mesh, PartitionSpec("x"))
    placed = jax.device_put(np.zeros(8, np.float32), sharding)
    target = {
        "array": placed,
        "struct": struct(8, sharding=sharding),
        "unplaced": struct(8, dtype=np.int8),
        "numpy": np.zeros(3, np.int16),
        "int": 3,
        "float": 2.0,
        "generic": np.float32(1),
        "text": "t",
        "skip": ...,
        "none": None,
        "key": jax.random.key(0),
    }
    found = construct_restore_args(target)
    array = ArrayRestoreArgs(dtype=np.dtype(np.float32), sharding=sharding, global_shape=(8,))
    assert found["array"] == found["struct"] == array
    assert found["unplaced"] == RestoreArgs(np.ndarray, np.dtype(np.int8))
    assert found["numpy"] == RestoreArgs(np.ndarray, np.dtype(np.int16))
    assert [found[name].restore_type for name in ("int", "float", "generic", "text", "skip")] == [
        int,
        float,
        np.float32,
        str,
        type(...),
    ]
    assert found["none"] is None
    assert (found["key"].dtype, found["key"].global_shape) == (np.uint32, None)
    assert construct_restore_args(target, set_global_shape=False)["array"].global_shape is None
    assert construct_restore_args(target, strict=False)["array"].strict is False


def test_shardings_may_come_from_a_tree_of_their_own():
    target = {"a": jnp.ones(2), "b": struct(2), "i": 1}
    found = construct_restore_args(target, {"a": on(4), "b": on(5), "i": None})
    assert (found["a"].sharding, found["b"].sharding) == (on(4), on(5))
    assert found["i"] == RestoreArgs(int)
    with pytest.raises(ValueError, match="structure of the target"):
        construct_restore_args(target, {"a": on(4)})


def test_layouts_are_taken_when_asked():
    layout = Format(Layout(major_to_minor=(1, 0)), on(1))
    target = [struct(2, 3, sharding=layout), jax.device_put(np.zeros((2, 3)), layout), 5]
    found = construct_restore_args(target, support_layout=True)
    assert [args.sharding.layout.major_to_minor for args in found[:2]] == [(1, 0)] * 2
    plain = construct_restore_args(target)
    assert [args.sharding for args in plain[:2]] == [on(1)] * 2


def test_a_leaf_that_gives_no_arguments_is_named():
    with pytest.raises(ValueError, match=r"\['a'\]\[1\].*object"):
        construct_restore_args({"a": [1, object()]})


def test_constructed_arguments_restore_what_was_saved(saved):
    found = restore(saved, restore_args=construct_restore_args(tree()))
    again = restore(saved, item=tree(), restore_args=construct_restore_args(hf.metadata(saved)))
    for result in (found, again):
        np.testing.assert_array_equal(result["w"], tree()["w"])
        assert type(result["n"]) is np.ndarray
        assert (result["i"], result["f"], result["s"], result["t"]) == (3, 2.5, "text", (1, [2]))
        assert jax.random.key_impl(result["key"]) == jax.random.key_impl(tree()["key"])
        assert jax.random.key_data(result["key"]).tolist() == [0, 1]


# --- partial -------------------------------------------------------------------------


def partial_context():
    loading = hc.options.PyTreeLoadOptions(partial_load=True)
    return hc.Context(pytree=hc.options.PyTreeOptions(loading=loading))


def load_through(entry, place, target):
    """One partial load, through each entry point."""
    context = partial_context()
    if entry == "load":
        return hc.load(place, target, context=context)
    if entry == "checkpointables":
        return hc.load_checkpointables(place, {"state": target}, context=context)["state"]
    if entry == "context":
        with hc.Checkpointer(
            hc.CompositeCheckpointHandler(state=hc.PyTreeCheckpointHandler()), context=context
        ) as checkpointer:
            args = hf.args.Composite(state=PyTreeRestore(target))
            return checkpointer.restore(place, args=args)["state"]
    kind = {"pytree": PyTreeRestore, "standard": StandardRestore}[entry]
    handler = {"pytree": hc.PyTreeCheckpointHandler, "standard": hc.StandardCheckpointHandler}
    with hc.Checkpointer(hc.CompositeCheckpointHandler(state=handler[entry]())) as checkpointer:
        args = hf.args.Composite(state=kind(target, partial_restore=True))
        return checkpointer.restore(place, args=args)["state"]


ENTRIES = ["load", "checkpointables", "context", "pytree", "standard"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_partial_target_leaves_out_leaves_and_never_invents_one(tmp_path, entry):
    place = tmp_path / "c"
    hc.save(place, {**tree(), "deep": {"a": {"b": 1, "c": 2}, "pair": Pair(1, 2)}, "e": {}})
    target = {"n": np.zeros(5, np.int16), "deep": {"a": {"c": 0}, "pair": ...}, "t": (0,)}
    found = load_through(entry, place, target)
    assert found.keys() == target.keys()
    np.testing.assert_array_equal(found["n"], np.arange(5))
    assert found["deep"] == {"a": {"c": 2}, "pair": ...}
    assert found["t"] == (1,)
    for absent in (
        {"gone": 1},
        {"deep": {"gone": struct(2)}},
        {"gone": ...},
        {"gone": None},
        {"t": (0, [0], 0)},
        {"none": 3},
        {"i": {"a": 1}},
    ):
        with pytest.raises(TreeMismatchError):
            load_through(entry, place, absent)


def test_without_partial_the_same_targets_are_refused(saved):
    with pytest.raises(TreeMismatchError, match=r"\['w'\]: in the checkpoint"):
        hc.load(saved, {"n": np.zeros(5, np.int16)}, checkpointable_name=None)
    with pytest.raises(TreeMismatchError):
        restore(saved, item={"n": np.zeros(5, np.int16)})
    assert restore(saved, item={"i": 0}, partial_restore=True) == {"i": 3}


def test_a_part_is_restored_with_arguments_for_the_whole_tree(saved):
    item, whole = {"i": 0}, blank()
    assert restore(saved, item=item, restore_args=whole, partial_restore=True) == {"i": 3}
    with pytest.raises(ValueError, match="structure of the item"):
        restore(saved, item=item, restore_args=whole)


def test_a_skipped_leaf_is_the_placeholder_and_in_a_partial_restore_the_targets_leaf(saved):
    item = {**tree(), "w": struct(3, 4)}
    args = {**blank(), "w": RestoreArgs(restore_type=type(...))}
    assert restore(saved, item=item, restore_args=args)["w"] is ...
    found = restore(saved, item=item, restore_args=args, partial_restore=True)
    assert found["w"] is item["w"]
    assert restore(saved, item={"w": ...}, partial_restore=True)["w"] is ...


def test_named_tuples_match_by_their_fields(place):
    hc.save(place, {"p": Pair(1, 2)})
    assert hc.load(place, {"p": Swapped(0, 0)})["p"] == Swapped(second=2, first=1)
    other = collections.namedtuple("Pair", "first third")
    with pytest.raises(TreeMismatchError, match="third"):
        hc.load(place, {"p": other(0, 0)})
    assert hc.load(place, {"p": (0, 0)})["p"] == (1, 2)


# --- padding and truncation ----------------------------------------------------------


def lenient():
    loading = hc.options.ArrayLoadOptions(enable_padding_and_truncation=True)
    return hc.Context(array=hc.options.ArrayOptions(loading=loading))


def expected_for(array, shape):
    found = np.zeros(shape, array.dtype)
    inside = tuple(slice(0, min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    found[inside] = array[inside]
    return found


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 24), (24, 24), (0, 8), (1, 1), (3, 9)])
@pytest.mark.parametrize("chunk_bytes", [16 << 20, 48])
def test_each_axis_is_padded_or_truncated_at_its_end(place, shape, chunk_bytes):
    array = np.arange(1, 65, dtype=np.float32).reshape(8, 8)
    saving = hc.options.ArraySaveOptions(chunk_bytes=chunk_bytes, small_leaf_bytes=0)
    hc.save(place, {"a": array}, context=hc.Context(array=hc.options.ArrayOptions(saving=saving)))
    expected = expected_for(array, shape)
    target = {"a": np.zeros(shape, np.float32)}
    np.testing.assert_array_equal(hc.load(place, target, context=lenient())["a"], expected)
    if shape != array.shape:
        with pytest.raises(TreeMismatchError, match=r"\['a'\].*shape"):
            hc.load(place, target)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec("y", "x"))
    if shape[0] % 2 == 0 and shape[1] % 4 == 0:
        target = {"a": struct(*shape, sharding=sharding, dtype=np.float16)}
        found = hc.load(place, target, context=lenient())["a"]
        assert found.sharding == sharding
        np.testing.assert_array_equal(found, expected.astype(np.float16))


def test_a_saved_shape_that_does_not_divide_over_the_devices_may_be_padded_to_one_that_does(place):
    hc.save(place, {"a": np.arange(15.0, dtype=np.float32).reshape(5, 3)})
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), PartitionSpec(None, "x"))
    found = np.asarray(hc.load(place, {"a": struct(5, 8, sharding=sharding)}, strict=False)["a"])
    np.testing.assert_array_equal(found[:, :3], np.arange(15.0).reshape(5, 3))
    assert not found[:, 3:].any()


def test_not_strict_is_the_same_leaf_by_leaf_or_for_all(place):
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, {"a": jnp.arange(4.0), "b": jnp.arange(4.0)})
    args = {
        "a": ArrayRestoreArgs(global_shape=(6,), strict=False, dtype=np.float32),
        "b": ArrayRestoreArgs(global_shape=(4,)),
    }
    found = restore(place, restore_args=args)
    np.testing.assert_array_equal(found["a"], [0, 1, 2, 3, 0, 0])
    args["b"] = ArrayRestoreArgs(global_shape=(2,))
    with pytest.raises(TreeMismatchError, match=r"\['b'\]"):
        restore(place, restore_args=args)
    with hc.Checkpointer(hc.StandardCheckpointHandler()) as checkpointer:
        target = {"a": struct(2), "b": struct(5)}
        found = checkpointer.restore(place, args=StandardRestore(target, strict=False))
        with pytest.raises(TreeMismatchError, match="2 differences"):
            checkpointer.restore(place, args=StandardRestore(target))
    np.testing.assert_array_equal(found["a"], [0, 1])
    np.testing.assert_array_equal(found["b"], [0, 1, 2, 3, 0])


def test_the_number_of_axes_keys_and_numbers_are_never_padded(place):
    hc.save(place, {"a": np.ones(3), "k": jax.random.split(jax.random.key(0), 2), "i": 3})
    for target in (
        {"a": np.ones((3, 1))},
        {"a": np.ones(())},
        {"k": jax.random.split(jax.random.key(0), 3)},
        {"i": np.ones(2)},
    ):
        with pytest.raises(TreeMismatchError, match="shape"):
            hc.load(place, target, context=hc.Context(lenient(), pytree=partial_context().pytree))


# --- places --------------------------------------------------------------------------


def test_an_abstract_mesh_stands_for_the_one_that_is_set(place):
    mesh = jax.make_mesh((8,), ("x",))
    hc.save(place, {"w": jnp.arange(16.0), "k": jax.random.split(jax.random.key(0), 8)})
    abstract = NamedSharding(AbstractMesh((8,), ("x",)), PartitionSpec("x"))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 8))
    target = {
        "w": struct(16, sharding=abstract),
        "k": jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=abstract),
    }
    with jax.set_mesh(mesh):
        found = hc.load(place, target)
        response = hc.load_async(place, target)
    assert found["w"].sharding.mesh.devices.tolist() == mesh.devices.tolist()
    assert len(found["k"].sharding.device_set) == 8
    assert response.result()["w"].sharding.spec == PartitionSpec("x")
    np.testing.assert_array_equal(found["w"], np.arange(16.0))
    with pytest.raises(PlacementError, match=r"none is set.*set_mesh"):
        hc.load(place, target)
    with (
        jax.set_mesh(jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])),
        pytest.raises(PlacementError, match=r"abstract mesh \(\('x', 8\),\)"),
    ):
        hc.load(place, target)


def test_a_layout_that_a_target_names_is_made(place):
    array = np.arange(12.0, dtype=np.float32).reshape(3, 4)
    hc.save(place, {"w": jnp.asarray(array)})
    layout = Format(Layout(major_to_minor=(1, 0)), on(1))
    found = hc.load(place, {"w": struct(3, 4, sharding=layout)})["w"]
    assert found.format.layout.major_to_minor == (1, 0)
    np.testing.assert_array_equal(found, array)
    args = {"w": ArrayRestoreArgs(sharding=layout)}
    assert hc.load(place, restore_args=args)["w"].format.layout.major_to_minor == (1, 0)
    wrong = Format(Layout(major_to_minor=(0,)), on(1))
    with pytest.raises(PlacementError, match=r"\['w'\].*layout"):
        hc.load(place, {"w": struct(3, 4, sharding=wrong)})


def test_the_layout_of_an_array_in_the_target_counts_with_support_layout(place):
    array = jax.device_put(np.zeros((2, 3), np.float32), Format(Layout((1, 0)), on(1)))
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(place, {"w": np.zeros((2, 3), np.float32)})
    for flag, order in ((True, (1, 0)), (False, (0, 1))):
        with hc.Checkpointer(hc.StandardCheckpointHandler()) as checkpointer:
            args = StandardRestore({"w": array}, support_layout=flag)
            found = checkpointer.restore(place, args=args)["w"]
        assert found.format.layout.major_to_minor == order
        assert found.devices() == {jax.devices()[1]}


def test_a_layout_is_for_arrays_and_not_for_keys_or_numbers(place):
    item = {"k": jax.random.split(jax.random.key(0), 3), "z": jnp.float32(1), "i": 3}
    hc.save(place, item)
    found = hc.load(place, item, support_layout=True)
    assert (jax.random.key_data(found["k"]) == jax.random.key_data(item["k"])).all()
    assert (found["z"], found["i"]) == (1, 3)


def test_a_load_while_a_function_is_traced_gives_its_constants(place):
    hc.save(place, {"w": np.ones(3, np.float32)})
    doubled = jax.jit(lambda x: x * hc.load(place, {"w": np.ndarray})["w"])
    np.testing.assert_array_equal(doubled(2.0), [2, 2, 2])


def test_an_integer_that_the_dtype_cannot_hold_is_refused_and_not_wrapped(place):
    hc.save(place, {"a": np.array([1, 300]), "i": 2**40, "big": 2**100, "j": jnp.arange(8)})
    ok = {"a": np.zeros(2, np.int16), "i": np.int64(0), "big": None, "j": struct(8, dtype=np.int8)}
    assert hc.load(place, ok)["j"].dtype == np.int8
    for name, wrong in (
        ("a", np.zeros(2, np.int8)),
        ("a", struct(2, dtype=np.uint8)),
        ("i", np.int32(0)),
        ("i", struct(dtype=np.int32)),
        ("i", jax.Array),
        ("big", np.ndarray),
        ("big", np.float64(0)),
    ):
        with pytest.raises((TreeMismatchError, PlacementError), match=rf"\['{name}'\]"):
            hc.load(place, {**ok, name: wrong})
    wrapped = hc.load(place, {**ok, "a": np.zeros(2, np.int8)}, cast="unsafe")["a"]
    np.testing.assert_array_equal(wrapped, [1, 44])


def test_a_broadcast_between_processes_changes_nothing_in_one(place):
    hc.save(place, {"a": np.arange(3)})
    loading = hc.options.ArrayLoadOptions(use_load_and_broadcast=True)
    context = hc.Context(array=hc.options.ArrayOptions(loading=loading))
    np.testing.assert_array_equal(hc.load(place, context=context)["a"], np.arange(3))


def test_which_replica_reads_is_said_in_orbax_s_words_too_and_nonsense_is_refused():
    loads = hc.options.ArrayLoadOptions
    theirs = types.SimpleNamespace(
        replica_axis_index=1,
        primary_replica_id=2,
        broadcast_memory_limit_bytes=7,
        broadcast_memory_scaling_factor=0.5,
    )
    chosen = loads(load_and_broadcast_options=theirs).load_and_broadcast_options
    assert chosen == LoadAndBroadcastOptions(**vars(theirs))
    assert loads().load_and_broadcast_options == LoadAndBroadcastOptions()
    for name, value in (
        ("replica_axis_index", -1),
        ("primary_replica_id", True),
        ("broadcast_memory_limit_bytes", 0),
        ("broadcast_memory_scaling_factor", 1.5),
    ):
        with pytest.raises(ValueError, match=name):
            LoadAndBroadcastOptions(**{name: value})
    with pytest.raises(TypeError, match="LoadAndBroadcastOptions or None, got a dict"):
        loads(load_and_broadcast_options={})
