"""Loading into a target: what matches, what is asked for, and everything that does not fit."""

import collections
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec, SingleDeviceSharding

import holdfast_checkpointer as hc
from holdfast_checkpointer.errors import PlacementError, TreeMismatchError

Point = collections.namedtuple("Point", "x y")


@pytest.fixture
def saved(place):
    tree = {
        "w": jnp.arange(12.0).reshape(3, 4),
        "n": np.arange(5, dtype=np.int16),
        "i": 3,
        "f": 2.5,
        "s": "text",
        "t": (1, [2]),
        "none": None,
        "key": jax.random.key(1),
    }
    hc.save(place, tree)
    return place, tree


def struct(*shape, dtype=np.float32, sharding=None):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def test_every_difference_is_listed_in_one_error(saved):
    place, tree = saved
    target = {
        "w": struct(4, 3),
        "n": struct(5, dtype=np.complex64),
        "i": "text",
        "f": 0.0,
        "t": (1, [2, 3]),
        "none": 5,
        "key": jax.random.key(1),
        "more": {"a": 1, "b": 2},
    }
    with pytest.raises(TreeMismatchError) as caught:
        hc.load(place, target)
    text = str(caught.value)
    assert "7 differences" in text
    for part in [
        "['w']: the target has shape [4, 3], the checkpoint [3, 4]",
        "['n']: the target has dtype complex64, the checkpoint int16",
        "['i']: the target wants str, the checkpoint has int",
        "['t'][1][1]: in the target, not in the checkpoint",
        "['none']: the target has a leaf, the checkpoint None",
        "['more']: in the target, not in the checkpoint (dict of 2 leaves)",
        "['s']: in the checkpoint (str), not in the target",
    ]:
        assert part in text
    assert isinstance(caught.value, ValueError)


def test_dtype_and_sharding_come_from_the_target(saved):
    place, tree = saved
    device = jax.devices()[3]
    target = dict(tree)
    target["w"] = struct(3, 4, dtype=jnp.bfloat16, sharding=SingleDeviceSharding(device))
    target["n"] = struct(5)
    found = hc.load(place, target)
    assert found["w"].dtype == jnp.bfloat16
    assert found["w"].devices() == {device}
    assert found["n"].dtype == np.float32
    assert isinstance(found["n"], jax.Array)


def test_a_numpy_target_gives_numpy(saved):
    place, tree = saved
    found = hc.load(place, {**tree, "w": np.zeros((3, 4), np.float64), "n": np.ndarray})
    assert type(found["w"]) is np.ndarray
    assert found["w"].dtype == np.float64
    assert found["n"].dtype == np.int16


def test_an_unsafe_cast_needs_to_be_asked_for(saved):
    place, tree = saved
    target = {**tree, "w": struct(3, 4, dtype=np.int32)}
    with pytest.raises(TreeMismatchError, match="cast='unsafe'"):
        hc.load(place, target)
    assert hc.load(place, target, cast="unsafe")["w"].dtype == np.int32
    with pytest.raises(ValueError, match="cast must be"):
        hc.load(place, target, cast="please")


def test_a_placeholder_skips_a_leaf_or_a_subtree_and_must_exist(saved):
    place, tree = saved
    found = hc.load(place, {**tree, "w": ..., "t": ...})
    assert found["w"] is ...
    assert found["t"] is ...
    assert found["i"] == 3
    with pytest.raises(TreeMismatchError, match="not in the checkpoint"):
        hc.load(place, {**tree, "gone": ...})


def test_none_takes_a_leaf_as_it_was_saved(saved):
    place, tree = saved
    found = hc.load(place, {**tree, "w": None, "s": None})
    np.testing.assert_array_equal(found["w"], tree["w"])
    assert found["s"] == "text"
    assert found["none"] is None


def test_types_ask_for_kinds(saved):
    place, tree = saved
    found = hc.load(place, {**tree, "i": int, "f": float, "s": str, "w": np.ndarray})
    assert (found["i"], found["f"], found["s"]) == (3, 2.5, "text")
    assert type(found["w"]) is np.ndarray
    assert hc.load(place, {**tree, "i": float})["i"] == 3.0


def test_sequences_match_each_other(place):
    hc.save(place, {"a": (1, 2), "b": Point(3, 4)})
    found = hc.load(place, {"a": [0, 0], "b": (0, 0)})
    assert found == {"a": [1, 2], "b": (3, 4)}
    assert hc.load(place, {"a": Point(0, 0), "b": [0, 0]})["a"] == Point(1, 2)


def test_keys_match_with_their_types(place):
    hc.save(place, {1: 10, 2: 20})
    assert hc.load(place, {1: 0, 2: 0}) == {1: 10, 2: 20}
    with pytest.raises(TreeMismatchError, match=r"\['1'\]: in the target"):
        hc.load(place, {"1": 0, "2": 0})


def test_the_metadata_is_a_target(saved):
    place, tree = saved
    found = hc.load(place, hc.metadata(place))
    np.testing.assert_array_equal(found["w"], tree["w"])
    assert isinstance(found["w"], jax.Array)
    assert type(found["n"]) is np.ndarray


def test_a_key_of_another_implementation_is_refused(saved):
    place, tree = saved
    with pytest.raises(TreeMismatchError, match="keys of threefry2x32"):
        hc.load(place, {**tree, "key": jax.random.key(0, impl="rbg")})
    with pytest.raises(TreeMismatchError, match="PRNG keys"):
        hc.load(place, {**tree, "key": struct(2, dtype=np.uint32)})
    found = hc.load(place, {**tree, "key": jax.eval_shape(lambda: jax.random.key(0))})
    assert (jax.random.key_data(found["key"]) == jax.random.key_data(tree["key"])).all()


def test_a_sharding_that_does_not_fit_is_refused_with_the_leaf(saved):
    place, tree = saved
    mesh = jax.make_mesh((8,), ("x",))
    target = {**tree, "w": struct(3, 4, sharding=NamedSharding(mesh, PartitionSpec("x")))}
    with pytest.raises(PlacementError, match=r"\['w'\] of shape \[3, 4\]"):
        hc.load(place, target)


def test_saved_devices_that_are_not_here_give_the_fallback_or_the_default(saved, caplog):
    place, tree = saved
    mesh = jax.make_mesh((8,), ("x",))
    array = jax.device_put(
        np.arange(8.0, dtype=np.float32), NamedSharding(mesh, PartitionSpec("x"))
    )
    hc.save(place, {"a": array}, overwrite=True)
    from holdfast_checkpointer.items import fetch

    fewer = jax.devices()[:2]
    original = jax.devices
    fetch.jax.devices = lambda: fewer
    try:
        with caplog.at_level(logging.INFO, "holdfast_checkpointer"):
            found = hc.load(place)["a"]
        assert "saved sharding" in caplog.text
        fallback = SingleDeviceSharding(fewer[1])
        other = hc.load(place, fallback_sharding=fallback)["a"]
    finally:
        fetch.jax.devices = original
    assert found.devices() == {fewer[0]}
    assert other.devices() == {fewer[1]}
    np.testing.assert_array_equal(found, np.arange(8.0))


def test_the_callers_default_device_counts(place):
    mesh = jax.make_mesh((8,), ("x",))
    array = jax.device_put(
        np.arange(8.0, dtype=np.float32), NamedSharding(mesh, PartitionSpec("x"))
    )
    hc.save(place, {"a": array})
    with jax.default_device(jax.devices()[5]):
        target = {"a": struct(8, sharding=None)}
        assert hc.load(place, target)["a"].sharding == array.sharding


def test_sixty_four_bits_are_never_dropped_silently(place):
    with jax.enable_x64(True):
        tree = {"a": jnp.arange(3.0)}
        assert tree["a"].dtype == np.float64
        hc.save(place, tree)
        assert hc.load(place)["a"].dtype == np.float64
    with pytest.raises(PlacementError, match="jax_enable_x64"):
        hc.load(place)
    assert hc.load(place, {"a": struct(3)})["a"].dtype == np.float32
    assert hc.load(place, {"a": np.ndarray})["a"].dtype == np.float64


def test_optional_names_select_the_item(place):
    hc.save(place, {"a": 1}, checkpointable_name="model")
    assert hc.load(place) == {"a": 1}
    assert hc.load(place, checkpointable_name="model") == {"a": 1}
    with pytest.raises(KeyError, match="'model'"):
        hc.load(place, checkpointable_name="state")


def test_overwritten_files_do_not_change_loaded_arrays(tmp_path):
    place = tmp_path / "c"
    hc.save(place, {"w": jnp.arange(100_000.0)})
    found = hc.load(place)["w"]
    for path in place.rglob("*"):
        if path.is_file():
            path.write_bytes(b"\xff" * path.stat().st_size)
    np.testing.assert_array_equal(found, np.arange(100_000.0, dtype=np.float32))
