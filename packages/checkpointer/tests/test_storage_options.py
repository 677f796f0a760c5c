"""How leaves are stored, when the caller says so: dtypes, chunks, and every refusal."""

import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

import holdfast_checkpointer as hc
from holdfast_checkpointer.args import (
    ArraySave,
    JaxRandomKeySave,
    NumpyRandomKeySave,
    PyTreeSave,
    SaveArgs,
    StandardSave,
)
from holdfast_checkpointer.arrays import plan
from holdfast_checkpointer.arrays.options import (
    ArraySaveOptions,
    StorageOptions,
)
from holdfast_checkpointer.errors import StorageOptionsError, UnsupportedOptionError
from holdfast_metadata.dtypes import _BY_NAME as DTYPES
from holdfast_metadata.orbax import ItemMetadata


def tree():
    return {
        "w": jnp.arange(12.0).reshape(3, 4),
        "n": np.arange(5, dtype=np.int64),
        "g": np.float32(0.1),
        "empty": np.zeros((0, 3), np.float32),
        "scalar": jnp.float32(0.1),
        "weak": jnp.asarray(1.0),
        "step": 1_000_003,
        "rate": 0.1,
        "big": 2**200,
        "text": "t",
        "raw": b"b",
        "key": jax.random.key(3),
        "none": None,
    }


def saving(**options):
    return hc.Context(array=hc.options.ArrayOptions(saving=ArraySaveOptions(**options)))


def handler_save(place, item, save_args, handler=None, args=PyTreeSave):
    with hc.Checkpointer(handler or hc.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(place, args=args(item, save_args))


def assert_is_bfloat16(found):
    original = tree()
    for name in ("w", "n", "empty", "scalar", "weak"):
        assert found[name].dtype == jnp.bfloat16, name
        expected = np.asarray(original[name]).astype(jnp.bfloat16)
        assert np.asarray(found[name]).tobytes() == expected.tobytes()
    assert type(found["g"]) is ml_dtypes.bfloat16
    assert found["g"] == ml_dtypes.bfloat16(0.1)
    for name in ("step", "rate", "big", "text", "raw", "none"):
        assert found[name] == original[name]
        assert type(found[name]) is type(original[name])
    assert jax.random.key_data(found["key"]).tolist() == [0, 3]


def test_a_dtype_for_all_casts_arrays_and_leaves_numbers_text_and_keys_exact(place):
    hc.save(place, tree(), context=saving(storage_options=StorageOptions(dtype=jnp.bfloat16)))
    assert hc.verify(place).ok
    assert_is_bfloat16(hc.load(place))
    described = hc.metadata(place).metadata
    assert described["w"].dtype == jnp.bfloat16
    assert (
        hc.load(place, {**hc.load(place), "w": np.zeros((3, 4), np.float32)})["w"].dtype
        == np.float32
    )


def test_save_args_say_the_same_leaf_by_leaf(place):
    item = tree()
    args = jax.tree.map(lambda _: SaveArgs(dtype="bfloat16"), item)
    handler_save(place, item, args)
    assert_is_bfloat16(hc.load(place))


def test_the_creator_sees_jaxs_key_paths_and_the_values_and_its_fields_win(place):
    seen = {}

    def create(keypath, value):
        seen[jax.tree_util.keystr(keypath)] = value
        if jax.tree_util.keystr(keypath) == "['a'][1]":
            return StorageOptions(dtype=np.float16)
        return StorageOptions() if isinstance(value, np.ndarray) else None

    item = {"a": (jnp.ones(3), jnp.ones(3)), "n": np.ones(2), "s": "text"}
    options = StorageOptions(dtype=jnp.bfloat16)
    hc.save(
        place, item, context=saving(storage_options=options, scoped_storage_options_creator=create)
    )
    assert list(seen) == ["['a'][0]", "['a'][1]", "['n']", "['s']"]
    assert seen["['s']"] == "text"
    found = hc.load(place)
    assert [found["a"][0].dtype, found["a"][1].dtype] == [jnp.bfloat16, np.float16]
    assert found["n"].dtype == jnp.bfloat16


def test_save_args_win_over_the_creator_which_wins_over_the_options(place):
    context = saving(
        storage_options=StorageOptions(dtype=jnp.bfloat16, chunk_byte_size=4),
        scoped_storage_options_creator=lambda *_: StorageOptions(dtype=np.float16),
    )
    with hc.PyTreeCheckpointer(context=context) as checkpointer:
        item = {"a": np.ones(8, np.float32), "b": np.ones(8, np.float32)}
        save_args = {"a": SaveArgs(dtype=np.float64, chunk_byte_size=16), "b": SaveArgs()}
        checkpointer.save(place, item, save_args=save_args)
    found = hc.metadata(place).metadata
    assert (found["a"].dtype, found["a"].chunk_shape) == (np.float64, (2,))
    assert (found["b"].dtype, found["b"].chunk_shape) == (np.float16, (2,))


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [
        ("int4", "int8"),
        ("int8", "int4"),
        ("float32", "float4_e2m1fn"),
        ("float4_e2m1fn", "float8_e8m0fnu"),
        ("float4_e2m1fn", "float32"),
        ("int4", "float4_e2m1fn"),
        ("int1", "uint4"),
        ("complex64", "complex128"),
        ("uint64", "int8"),
        (">i4", "int16"),
        ("bool", "bool"),
    ],
)
def test_a_cast_between_narrow_types_gives_what_numpy_gives(place, dtype, wanted):
    source = np.dtype(dtype) if dtype.startswith(">") else DTYPES[dtype]
    values = np.zeros(9, np.int8) if dtype in ("int1", "bool") else np.arange(9) % 3
    array = values.astype(source)
    handler_save(place, {"a": array, "b": array[2]}, {"a": SaveArgs(dtype=wanted), "b": None})
    found = hc.load(place)["a"]
    assert found.dtype == DTYPES[wanted]
    expected = array.astype(np.float64) if dtype != "complex64" else array
    if wanted != "float8_e8m0fnu":  # it has no zero
        np.testing.assert_array_equal(found.astype(expected.dtype), expected)
    assert hc.verify(place).ok


def test_a_sharded_array_is_cast_shard_by_shard(place):
    mesh = jax.make_mesh((8,), ("x",))
    array = jax.device_put(
        np.arange(64.0, dtype=np.float32).reshape(16, 4), NamedSharding(mesh, PartitionSpec("x"))
    )
    hc.save(place, [array], context=saving(storage_options=StorageOptions(dtype=jnp.float16)))
    (found,) = hc.load(place)
    assert found.dtype == np.float16
    assert found.sharding == array.sharding
    np.testing.assert_array_equal(found, np.asarray(array))


def test_a_snapshot_that_is_cast_later_is_still_a_snapshot(place):
    array = np.ones(1000, np.float32)
    options = StorageOptions(dtype=np.float16)
    response = hc.save_async(place, {"a": array}, context=saving(storage_options=options))
    array[:] = 7
    response.result()
    assert (hc.load(place)["a"] == 1).all()


def test_the_dtype_that_a_leaf_has_anyway_changes_nothing(place):
    item = {"weak": jnp.asarray(1.0), "n": np.arange(3, dtype=">i4")}
    args = {"weak": SaveArgs(dtype=np.float32), "n": SaveArgs(dtype=">i4")}
    handler_save(place, item, args)
    found = hc.load(place)
    assert found["weak"].weak_type
    assert found["n"].dtype == np.int32


def test_chunks_are_at_most_as_large_as_said_and_cut_along_the_axes_named_first(place):
    item = {name: np.arange(64, dtype=np.float32).reshape(8, 8) for name in "abcd"}
    item["key"] = jax.random.split(jax.random.key(1), 6)
    args = {
        "a": SaveArgs(chunk_byte_size=64),
        "b": SaveArgs(chunk_byte_size=64, shard_axes=(1,)),
        "c": SaveArgs(chunk_byte_size=16, shard_axes=(1,)),
        "d": SaveArgs(shard_axes=(1,)),
        "key": SaveArgs(chunk_byte_size=16),
    }
    handler_save(place, item, args)
    found = jax.tree.map(lambda leaf: leaf.chunk_shape, hc.metadata(place).metadata)
    assert found == {"a": (2, 8), "b": (8, 2), "c": (4, 1), "d": (8, 8), "key": (2, 2)}
    loaded = hc.load(place)
    for name in "abcd":
        np.testing.assert_array_equal(loaded[name], item[name])
    assert (jax.random.key_data(loaded["key"]) == jax.random.key_data(item["key"])).all()


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_no_chunk_is_larger_than_said_nor_straddles_two_devices(data):
    rank = data.draw(st.integers(0, 4))
    axes = st.lists(st.integers(0, 50), min_size=rank, max_size=rank)
    part = tuple(data.draw(axes))
    shape = tuple(size * data.draw(st.sampled_from([1, 2, 3])) for size in part)
    itemsize = data.draw(st.sampled_from([1, 2, 8]))
    limit = data.draw(st.integers(itemsize, 10_000))
    first = data.draw(st.permutations(range(rank)))[: data.draw(st.integers(0, rank))]
    chunk = plan.chunk_shape(shape, part, itemsize, limit, first)
    assert math.prod(chunk) * itemsize <= limit
    for whole, own, size in zip(shape, part, chunk, strict=True):
        assert 1 <= size <= max(1, own)
        assert own == whole or own % size == 0


@pytest.mark.parametrize(
    ("shape", "part", "chunk"),
    [
        ((50264, 768), (6283, 768), (6283, 384)),  # 6283 is 61 x 103
        ((2 * 10000019,), (10000019,), (10000019,)),  # a prime: not ten million chunks
        ((2048, 4096), (1024, 4096), (1024, 4096)),
    ],
)
def test_a_divided_axis_without_fitting_divisors_is_not_cut_into_crumbs(shape, part, chunk):
    assert plan.chunk_shape(shape, part, 4, 16 << 20) == chunk


def test_axes_for_all_are_ignored_where_a_leaf_has_none_of_them(place):
    options = StorageOptions(chunk_byte_size=16, shard_axes=(1,))
    item = {"a": np.ones((4, 4), np.float32), "b": np.ones(3), "c": 1, "d": np.float32(2)}
    hc.save(place, item, context=saving(storage_options=options))
    found = hc.metadata(place).metadata
    assert found["a"].chunk_shape == (4, 1)
    assert hc.load(place)["d"] == 2


WRONG = {
    "a dtype that is none": ({"w": SaveArgs(dtype="float33")}, r"\['w'\]: dtype: 'float33'"),
    "a dtype of objects": ({"w": SaveArgs(dtype=object)}, r"\['w'\]: dtype"),
    "another kind": ({"w": SaveArgs(dtype=np.int32)}, r"\['w'\]: float32 is not stored as int32"),
    "bool": ({"m": SaveArgs(dtype=np.float32)}, r"\['m'\]: bool is not stored as float32"),
    "complex": ({"c": SaveArgs(dtype=np.float32)}, r"\['c'\]: complex64 is not stored as"),
    "too narrow": ({"n": SaveArgs(dtype=np.int8)}, r"\['n'\].*holds 1000003, which int8"),
    "unsigned": ({"j": SaveArgs(dtype=np.uint32)}, r"\['j'\].*holds -1, which uint32 cannot"),
    "a counter": ({"n": SaveArgs(dtype=jnp.bfloat16)}, r"\['n'\].*holds 1000003, which bfloat16"),
    "beyond the range": ({"n": SaveArgs(dtype=np.float16)}, r"\['n'\].*holds 1000003, which float"),
    "a narrow number": ({"g": SaveArgs(dtype=np.int8)}, r"\['g'\].*holds 300"),
    "no bytes": ({"w": SaveArgs(chunk_byte_size=0)}, r"\['w'\]: chunk_byte_size must be"),
    "half a byte": ({"w": SaveArgs(chunk_byte_size=0.5)}, r"\['w'\]: chunk_byte_size must be"),
    "true": ({"w": SaveArgs(chunk_byte_size=True)}, r"\['w'\]: chunk_byte_size must be"),
    "less than an element": ({"w": SaveArgs(chunk_byte_size=3)}, r"\['w'\].*an element, 4 bytes"),
    "a negative axis": ({"w": SaveArgs(shard_axes=(-1,))}, r"\['w'\]: shard_axes must be"),
    "an axis it lacks": ({"w": SaveArgs(shard_axes=(2,))}, r"\['w'\].*it has 2"),
    "an axis of a number": ({"i": SaveArgs(shard_axes=(0,))}, r"\['i'\].*it has 0"),
    "an axis twice": ({"w": SaveArgs(shard_axes=(0, 0))}, r"\['w'\]: shard_axes names an axis"),
    "no axes": ({"w": SaveArgs(shard_axes=1)}, r"\['w'\]: shard_axes must be"),
    "something else": ({"w": "float32"}, r"\['w'\]: expected SaveArgs"),
}


def mixed():
    return {
        "w": jnp.ones((3, 4)),
        "m": np.ones(2, bool),
        "c": np.ones(2, np.complex64),
        "n": np.array([1, 300, 1_000_003]),
        "j": jnp.array([-1, 2]),
        "g": np.int64(300),
        "i": 3,
    }


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_done_is_refused_with_the_leaf_before_anything_is_created(
    place, wrong, message
):
    args = {**dict.fromkeys(mixed()), **wrong}
    with pytest.raises(StorageOptionsError, match=message) as caught:
        handler_save(place, mixed(), args)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(StorageOptionsError, match=message):
        hc.save_checkpointables(place, {"state": PyTreeSave(mixed(), args)})
    (name,) = wrong
    if isinstance(wrong[name], SaveArgs):  # and by the creator
        scoped = StorageOptions(
            dtype=wrong[name].dtype,
            chunk_byte_size=wrong[name].chunk_byte_size,
            shard_axes=wrong[name].shard_axes or None,
        )
        context = saving(
            scoped_storage_options_creator=lambda path, _: scoped if path[0].key == name else None
        )
        with pytest.raises(StorageOptionsError, match=message):
            hc.save(place, mixed(), context=context)
    assert not hc.is_checkpoint(place)


def test_every_leaf_that_is_stored_wrongly_is_listed():
    with pytest.raises(StorageOptionsError) as caught:
        options = StorageOptions(dtype=np.int8)
        hc.save("memory://options/all", mixed(), context=saving(storage_options=options))
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "['c']",
        "['g']",
        "['m']",
        "['n']",
        "['w']",
    ]


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**24 + 1, 2**53 + 1])
def test_an_integer_is_stored_as_a_float_only_if_it_is_one(value):
    for dtype in (np.float16, np.float32, np.float64, jnp.bfloat16):
        place = f"memory://options/int-{value}-{np.dtype(dtype).name}"
        with np.errstate(over="ignore"):
            made = float(dtype(value))
        exact = np.isfinite(made) and int(made) == value
        context = saving(storage_options=StorageOptions(dtype=dtype))
        if exact:
            hc.save(place, {"a": np.array([0, value])}, context=context)
            assert int(hc.load(place)["a"][1]) == value
        else:
            with pytest.raises(StorageOptionsError, match=f"holds {value}"):
                hc.save(place, {"a": np.array([0, value])}, context=context)


def test_the_states_of_generators_are_stored_exactly_whatever_the_dtype_for_all(place):
    context = saving(storage_options=StorageOptions(dtype=jnp.bfloat16))
    items = {
        "jax": JaxRandomKeySave(jax.random.key(2**31 + 7)),
        "raw": JaxRandomKeySave(jax.random.PRNGKey(2**31 + 7)),
        "numpy": NumpyRandomKeySave(np.random.RandomState(5).get_state()),
    }
    hc.save_checkpointables(place, items, context=context)
    found = hc.load_checkpointables(place)
    assert (jax.random.key_data(found["jax"]) == jax.random.key_data(items["jax"].item)).all()
    assert (found["raw"] == items["raw"].item).all()
    assert found["raw"].dtype == np.uint32
    np.testing.assert_array_equal(found["numpy"][1], items["numpy"].item[1])
    assert found["numpy"][1].dtype == np.uint32


def test_what_a_creator_raises_comes_through_with_the_leaf_in_a_note():
    def create(keypath, value):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        context = saving(scoped_storage_options_creator=create)
        hc.save("memory://options/raises", {"a": np.ones(2)}, context=context)
    assert "['a']" in caught.value.__notes__[0]


def test_save_args_of_another_structure_are_refused(place):
    for wrong in ({"a": SaveArgs()}, [SaveArgs()], {"a": SaveArgs(), "b": SaveArgs(), "c": 1}):
        with pytest.raises(ValueError, match="structure of the item"):
            handler_save(place, {"a": 1, "b": 2}, wrong)
    assert not hc.is_checkpoint(place)


def test_every_handler_takes_save_args(place):
    handler_save(
        place,
        {"a": jnp.ones(2)},
        {"a": SaveArgs(dtype=jnp.bfloat16)},
        hc.StandardCheckpointHandler(),
        StandardSave,
    )
    assert hc.load(place)["a"].dtype == jnp.bfloat16
    other = f"{place}-array"
    handler_save(
        other,
        np.ones(8),
        SaveArgs(dtype=np.float32, chunk_byte_size=8),
        hc.ArrayCheckpointHandler(),
        ArraySave,
    )
    found = hc.metadata(other)
    assert hc.load(other)["checkpoint"].dtype == np.float32
    assert found.metadata["checkpoint"].chunk_shape == (2,)


def test_aggregate_is_refused_by_standard_and_explained_by_pytree(place, caplog):
    args = {"a": SaveArgs(aggregate=True)}
    with pytest.raises(ValueError, match="aggregate"):
        handler_save(place, {"a": jnp.ones(2)}, args, hc.StandardCheckpointHandler(), StandardSave)
    handler_save(place, {"a": jnp.ones(2)}, args)
    assert "aggregate" in caplog.text


def test_compression_and_the_size_of_data_files_are_orbaxs_options_too(tmp_path):
    item = {f"w{i}": np.zeros(100_000) for i in range(8)}
    hc.save(tmp_path / "z", item, context=saving(use_compression=True))
    assert sum(p.stat().st_size for p in (tmp_path / "z/state/d").iterdir()) < 100_000
    assert ArraySaveOptions(use_compression=False).compression is None
    with pytest.raises(ValueError, match="contradicts"):
        ArraySaveOptions(use_compression=False, compression="zstd")

    hc.save(tmp_path / "many", item, context=saving(ocdbt_target_data_file_size=100_000))
    hc.save(tmp_path / "one", item, context=saving(ocdbt_target_data_file_size=0))
    many, one = (list((tmp_path / name / "state/d").iterdir()) for name in ("many", "one"))
    assert len(many) > len(one) + 3
    with hc.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "arg", item, ocdbt_target_data_file_size=100_000)
        with pytest.raises(ValueError, match="ocdbt_target_data_file_size"):
            checkpointer.save(tmp_path / "no", item, ocdbt_target_data_file_size=-1)
    assert len(list((tmp_path / "arg/d").iterdir())) > len(one) + 3
    np.testing.assert_array_equal(hc.load(tmp_path / "many")["w3"], item["w3"])
    assert not (tmp_path / "no").exists()


REFUSED = [
    (ArraySaveOptions, {"use_ocdbt": False}),
    (ArraySaveOptions, {"use_zarr3": False}),
    (ArraySaveOptions, {"enable_pinned_host_transfer": True}),
    (ArraySaveOptions, {"enable_post_merge_validation": False}),
    (ArraySaveOptions, {"enable_replica_parallel_separate_folder": True}),
    (ArraySaveOptions, {"enable_write_sharding_file": False}),
    (ArraySaveOptions, {"array_metadata_store": None}),
]


@pytest.mark.parametrize(("kind", "option"), REFUSED)
def test_an_option_without_a_meaning_is_refused_in_words(kind, option):
    with pytest.raises(UnsupportedOptionError, match="has no meaning here.*Accepted") as caught:
        kind(**option)
    assert next(iter(option)) in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "option",
    [
        {"storage_options": StorageOptions(dtype="float33")},
        {"storage_options": StorageOptions(chunk_byte_size=0)},
        {"storage_options": StorageOptions(shard_axes=(-1,))},
        {"storage_options": {"dtype": "float32"}},
        {"scoped_storage_options_creator": 5},
        {"use_compression": "zstd"},
        {"use_replica_parallel": "yes"},
        {"min_slice_bytes_for_replica_parallel": 0},
        {"max_replicas_for_replica_parallel": 0},
        {"ocdbt_target_data_file_size": 1.5},
    ],
)
def test_an_option_that_is_wrong_for_every_leaf_is_refused_where_it_is_made(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ArraySaveOptions(**option)


def test_custom_metadata_of_an_item_is_stored_with_it_and_must_be_json(tmp_path):
    with hc.PyTreeCheckpointer() as checkpointer:
        args = PyTreeSave({"a": 1}, custom_metadata={"run": [4]})
        checkpointer.save(tmp_path / "a", args=args)
        stored = ItemMetadata.from_bytes((tmp_path / "a/_METADATA").read_bytes())
        assert stored.custom_metadata == {"run": [4]}
        with pytest.raises(ValueError, match="custom_metadata"):
            checkpointer.save(
                tmp_path / "b", args=PyTreeSave({"a": 1}, custom_metadata={"x": {1, 2}})
            )
    assert not (tmp_path / "b").exists()
