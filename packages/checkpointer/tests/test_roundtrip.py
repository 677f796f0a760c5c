"""What you load is what you saved: every leaf kind, container, dtype and sharding."""

import collections
import dataclasses
import math

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import holdfast_checkpointer as hc
from holdfast_metadata.dtypes import _BY_NAME as DTYPES

Point = collections.namedtuple("Point", "x y")


@flax.struct.dataclass
class State:
    step: int
    params: dict


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Plain:
    kernel: jax.Array
    bias: jax.Array


def assert_same_leaf(found, saved):
    assert type(found) is type(saved) or isinstance(saved, jax.Array)
    if isinstance(saved, jax.Array):
        assert isinstance(found, jax.Array)
        assert found.dtype == saved.dtype
        assert found.sharding == saved.sharding
        if jnp.issubdtype(saved.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(found) == jax.random.key_impl(saved)
            found, saved = jax.random.key_data(found), jax.random.key_data(saved)
        found, saved = np.asarray(found), np.asarray(saved)
    if isinstance(saved, np.ndarray | np.generic):
        assert found.dtype == saved.dtype
        assert found.shape == saved.shape
        assert found.tobytes() == saved.tobytes()
    elif isinstance(saved, float):
        assert math.copysign(1, found) == math.copysign(1, saved)
        assert found == saved or (found != found and saved != saved)
    elif isinstance(saved, complex):
        assert np.complex128(found).tobytes() == np.complex128(saved).tobytes()
    else:
        assert found == saved


def assert_same_tree(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert_same_leaf(a, b)


def roundtrip(place, tree, target=None):
    hc.save(place, tree, overwrite=True)
    assert hc.verify(place).ok
    return hc.load(place, target)


LEAVES = {
    "int": 5,
    "negative": -(2**63),
    "unsigned": 2**64 - 1,
    "big int": 2**200,
    "float": 0.1,
    "minus zero": -0.0,
    "nan": float("nan"),
    "infinity": float("inf"),
    "bool": True,
    "complex": 1 - 2j,
    "text": "grüße/\x00~1",
    "empty text": "",
    "surrogate": "\ud800",
    "bytes": b"\x00\xff",
    "numpy float32": np.float32(0.1),
    "numpy bool": np.bool_(True),
    "numpy bfloat16": ml_dtypes.bfloat16(1.5),
    "numpy 0-d": np.array(3.5),
    "jax 0-d": jnp.array(2),
    "weak": jnp.asarray(1.0),
    "zero size": np.zeros((0, 3)),
    "jax zero size": jnp.zeros((2, 0)),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(4, dtype=">i4"),
    "key": jax.random.key(7),
    "rbg": jax.random.key(7, impl="rbg"),
    "keys": jax.random.split(jax.random.key(1), 6).reshape(2, 3),
}


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_every_kind_of_leaf_comes_back(place, leaf):
    found = roundtrip(place, {"a": leaf})["a"]
    if isinstance(leaf, np.ndarray) and not leaf.dtype.isnative:
        leaf = leaf.astype(leaf.dtype.newbyteorder("="))
    assert_same_leaf(found, leaf)


@pytest.mark.parametrize("leaf", LEAVES.values(), ids=LEAVES)
def test_every_kind_of_leaf_comes_back_with_itself_as_the_target(place, leaf):
    assert_same_leaf(roundtrip(place, [leaf], [leaf])[0], leaf)


def test_a_leaf_may_be_the_whole_tree(place):
    assert roundtrip(place, 5) == 5
    np.testing.assert_array_equal(roundtrip(place, jnp.arange(9)), np.arange(9))


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_comes_back_bit_for_bit(place, name):
    dtype = DTYPES[name]
    values = np.arange(64).reshape(8, 8) % 2
    tree = {"small": values.astype(dtype), "none": np.zeros((0,), dtype)}
    tree["large"] = np.tile(values, (100, 100)).astype(dtype)
    found = roundtrip(place, tree)
    assert_same_tree(found, tree)


CONTAINERS = {
    "nested": {"a": [1, (2, {"b": None})], "c": {}},
    "empty": {"a": {}, "b": [], "c": (), "d": None, "e": 1},
    "int keys": {1: "a", 2: "b", 10: "c"},
    "bool keys": {True: 1, False: 2},
    "tuple keys": {("a", 1): 1, ("a", 2): 2},
    "bytes keys": {b"a": 1},
    "dots and slashes": {"a.b": 1, "a": {"b": 2}, "a/c": 3, "c": {"": 4}},
    "colliding keys": {"x": {"1": np.ones(2)}, "x.1": np.zeros(2)},
    "zarr names": {"a": np.ones(2), "a/c": {"0": np.ones(3)}, "a/zarr.json": np.ones(1)},
    "odd keys": {"": 1, " ": 2, "..": 3, "~": 4, "ключ": 5, "x" * 300: 6, "%holdfast%": 7},
    "named tuple": Point(np.ones(2), {"z": Point(1, None)}),
    "optax": optax.adam(1e-3).init({"w": jnp.ones((3, 2))}),
}


@pytest.mark.parametrize("tree", CONTAINERS.values(), ids=CONTAINERS)
def test_containers_come_back_as_they_were(place, tree):
    assert_same_tree(roundtrip(place, tree), tree)
    assert_same_tree(roundtrip(place, tree, tree), tree)


def test_dataclasses_come_back_as_dicts_and_with_a_target_as_themselves(place):
    tree = State(step=3, params={"d": Plain(jnp.ones(3), jnp.zeros(2))})
    plain = roundtrip(place, tree)
    assert plain["step"] == 3
    assert set(plain["params"]["d"]) == {"kernel", "bias"}
    found = roundtrip(place, tree, tree)
    assert isinstance(found, State)
    assert_same_tree(found, tree)


def test_a_frozen_dict_is_a_dict_without_a_target(place):
    tree = flax.core.freeze({"a": {"b": np.ones(2)}})
    assert isinstance(roundtrip(place, tree), dict)
    assert isinstance(roundtrip(place, tree, tree), flax.core.FrozenDict)


def test_a_named_tuple_whose_class_is_unknown_gets_one_like_it(place):
    there = collections.namedtuple("Gone", "u v")
    there.__module__ = "a_module_that_is_not_imported"
    found = roundtrip(place, there(1, 2))
    assert type(found).__name__ == "Gone"
    assert found._asdict() == {"u": 1, "v": 2}


def test_the_shapes_that_orbax_gives_are_to_be_had(place):
    tree = {"t": (1, 2), "n": Point(1, 2), 3: optax.EmptyState()}
    tree = {str(k): v for k, v in tree.items()}
    hc.save(place, tree)
    assert hc.load(place, as_orbax=True) == {"t": [1, 2], "n": {"x": 1, "y": 2}, "3": None}


MESHES = [
    (PartitionSpec("x"), (16, 6)),
    (PartitionSpec(None, "x"), (6, 16)),
    (PartitionSpec("x", "y"), (16, 8)),
    (PartitionSpec(("x", "y")), (16, 3)),
    (PartitionSpec(("y", "x"), None), (8, 8)),
    (PartitionSpec("y"), (4, 4)),
    (PartitionSpec(), (5,)),
]


def mesh(shape=(4, 2)):
    return jax.make_mesh(shape, ("x", "y"), devices=jax.devices()[: math.prod(shape)])


@pytest.mark.parametrize(("spec", "shape"), MESHES, ids=str)
def test_shardings_come_back_and_any_other_can_be_asked_for(place, spec, shape):
    value = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    array = jax.device_put(value, NamedSharding(mesh(), spec))
    small = hc.Context(
        array=hc.options.ArrayOptions(
            saving=hc.options.ArraySaveOptions(chunk_bytes=24, small_leaf_bytes=0)
        )
    )
    hc.save(place, {"w": array}, context=small)
    assert_same_leaf(hc.load(place)["w"], array)
    for other in [NamedSharding(mesh((2, 1)), PartitionSpec()), NamedSharding(mesh((1, 1)), spec)]:
        target = jax.ShapeDtypeStruct(shape, np.float32, sharding=other)
        found = hc.load(place, {"w": target})["w"]
        assert found.sharding == other
        np.testing.assert_array_equal(found, value)
    for other_spec, other_shape in MESHES:
        if other_shape == shape:
            continue
        try:
            other = NamedSharding(mesh((2, 4)), other_spec)
            other.shard_shape(shape)
        except (ValueError, IndexError):
            continue  # this array cannot be cut that way
        found = hc.load(place, {"w": jax.ShapeDtypeStruct(shape, np.float32, sharding=other)})["w"]
        assert found.sharding == other
        np.testing.assert_array_equal(found, value)


def test_large_arrays_are_cut_into_chunks_that_are_all_checked(place):
    value = np.random.default_rng(0).random((3000, 1000), np.float32)
    context = hc.Context(
        array=hc.options.ArrayOptions(saving=hc.options.ArraySaveOptions(chunk_bytes=1 << 20))
    )
    hc.save(place, {"w": value, "j": jnp.asarray(value)}, context=context)
    found = hc.load(place)
    np.testing.assert_array_equal(found["w"], value)
    np.testing.assert_array_equal(found["j"], value)
    assert hc.metadata(place).metadata["w"].chunk_shape[1] == 1000


@pytest.mark.parametrize("in_flight", [None, 1000])
def test_compression_changes_nothing_but_the_size(place, in_flight):
    saving = hc.options.ArraySaveOptions(compression="zstd", bytes_in_flight=in_flight)
    tree = {"zeros": np.zeros((500, 500)), "small": np.ones(3), "j": jnp.arange(1000)}
    hc.save(place, tree, context=hc.Context(array=hc.options.ArrayOptions(saving=saving)))
    assert_same_tree(hc.load(place), tree)
    assert hc.verify(place).ok


scalars = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.none(),
    st.sampled_from([np.arange(3), jnp.ones(2), np.float16(2), jax.random.key(0)]),
)
trees = st.recursive(
    scalars,
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.tuples(children, children).map(lambda pair: Point(*pair)),
        st.dictionaries(st.text(max_size=4), children, max_size=3),
        st.dictionaries(st.integers(), children, max_size=3),
    ),
    max_leaves=10,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(trees.filter(lambda tree: tree is not None))  # None as a whole tree is refused, in words
def test_any_tree_comes_back(tree):
    assert_same_tree(roundtrip("memory://property/tree", tree), tree)
    assert_same_tree(roundtrip("memory://property/tree", tree, tree), tree)


def test_loaded_numpy_arrays_are_the_callers_own(place):
    hc.save(place, {"a": np.arange(4), "b": np.arange(100_000)})
    first, second = hc.load(place), hc.load(place)
    for name in ("a", "b"):
        first[name][:] = 0
        assert second[name][-1] != 0
