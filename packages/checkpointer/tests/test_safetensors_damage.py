"""Safetensors files that are not what the format says: refused in words, in bounded memory."""

import json
import uuid

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packages.checkpointer.tests.tensors import counted, entry, get, put, raw, write

import holdfast as hf

GOOD = {"a": entry(), "b": entry("I8", (3,), (8, 11))}
DATA = bytes(8) + b"\1\2\3"
HUGE = 10**30

DAMAGED = {
    "empty": (b"", "0 bytes, too few"),
    "seven bytes": (bytes(7), "too few"),
    "no header": (bytes(8), "does not start with"),
    "header too large": ((100_000_001).to_bytes(8, "little") + b"{}", "allows 100000000"),
    "header of the largest size": (b"\xff" * 8 + b"{}", "allows 100000000"),
    "header cut off": ((50).to_bytes(8, "little") + b"{}", "cut off"),
    "not JSON": (raw(b"{nonsense"), "not valid JSON"),
    "not UTF-8": (raw(b'{"\xff": 1}'), "not valid JSON"),
    "not an object": (raw(b"[]"), "does not start with"),
    "nested without end": (raw(b'{"a":' * 50_000), "not valid JSON"),
    "more after the object": (raw(b"{} {}"), "not valid JSON"),
    "a number of many digits": (raw(b'{"a":' + b"9" * 5000 + b"}"), "not valid JSON"),
    "a tensor twice": (raw(b'{"a":{},"a":{}}'), "duplicate keys"),
    "a tensor that is no object": (raw({"a": 3}), "'a'.*no object"),
    "no dtype": (raw({"a": {"shape": [], "data_offsets": [0, 0]}}), "'a'.*dtype is None"),
    "no shape": (raw({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "'a'.*shape is no list"),
    "no offsets": (raw({"a": {"dtype": "F32", "shape": [0]}}), "'a'.*data_offsets is no list"),
    "one offset": (raw({"a": entry(offsets=(8,))}, bytes(8)), "'a'.*1 numbers, not two"),
    "three offsets": (raw({"a": entry(offsets=(0, 8, 8))}, bytes(8)), "'a'.*not two"),
    "a negative size": (raw({"a": entry(shape=(-2,))}, bytes(8)), "'a'.*natural numbers"),
    "a fraction": (raw({"a": entry(shape=(2.0,))}, bytes(8)), "'a'.*natural numbers"),
    "a truth value": (raw({"a": entry("BOOL", (True,), (0, 1))}, bytes(1)), "'a'.*natural"),
    "a size beyond 64 bits": (raw({"a": entry(shape=(HUGE,))}), "'a'.*natural numbers"),
    "offsets in the wrong order": (raw({"a": entry(offsets=(8, 0))}, bytes(8)), "'a'.*takes 8"),
    "offsets of another size": (raw({"a": entry(offsets=(0, 4))}, bytes(4)), "'a'.*takes 8"),
    "overlap": (raw({"a": entry(), "b": entry(offsets=(4, 12))}, bytes(12)), "'b'.*overlap"),
    "the same bytes": (raw({"a": entry(), "b": entry()}, bytes(8)), "'b'.*overlap"),
    "a gap": (raw({"a": entry(offsets=(4, 12))}, bytes(12)), "'a'.*4 bytes before it"),
    "cut off by a byte": (raw(GOOD, DATA[:-1]), "cut off"),
    "without its data": (raw(GOOD), "cut off"),
    "a byte too many": (raw(GOOD, DATA + b"x"), "last 1 bytes"),
    "half an element": (raw({"a": entry("F4", (3,), (0, 2))}, bytes(2)), "'a'.*end with a byte"),
    "metadata of numbers": (raw({"__metadata__": {"a": 1}}), "__metadata__"),
    "metadata of a list": (raw({"__metadata__": []}), "__metadata__"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_names_itself_and_the_tensor(case, place):
    data, match = DAMAGED[case]
    put(f"{place}/x.safetensors", data)
    for call in (hf.load, hf.metadata):
        with pytest.raises(hf.errors.DamagedCheckpointError, match=match) as error:
            call(f"{place}/x.safetensors")
        assert error.value.file == "x.safetensors"
        assert "x.safetensors" in str(error.value)
        assert error.value.leaf == ("b" if "'b'" in match else "a" if "'a'" in match else "")
    assert not hf.is_checkpoint(f"{place}/x.safetensors")
    with pytest.raises(safetensors.SafetensorError):  # nor is the library's own reader content
        safetensors.deserialize(data)


def test_a_sound_file_of_the_same_parts_loads(place):
    put(f"{place}/x.safetensors", raw(GOOD, DATA))
    assert hf.load(f"{place}/x.safetensors")["b"].tolist() == [1, 2, 3]
    put(f"{place}/y.safetensors", raw({}))
    assert hf.load(f"{place}/y.safetensors") == {}


@pytest.mark.parametrize(
    ("tensor", "data", "match"),
    [
        (entry("I4", (2,), (0, 1)), b"x", "dtype 'I4' is unknown; known are BOOL"),
        (entry(shape=(2**40, 2**40)), b"", "more than an array can have"),
        (entry(shape=(0, 2**62, 2), offsets=(0, 0)), b"", "more than an array can have"),
        (entry(shape=[1] * 65, offsets=(0, 4)), bytes(4), "more than an array can have"),
    ],
)
def test_what_an_array_cannot_hold_is_named_and_not_called_damage(tensor, data, match, place):
    put(f"{place}/x.safetensors", raw({"a": tensor}, data))
    with pytest.raises(
        hf.errors.MetadataError, match=rf"'a' of the file 'x\.safetensors'.*{match}"
    ):
        hf.load(f"{place}/x.safetensors")


def test_a_truth_value_other_than_0_and_1_is_damage(place):
    put(f"{place}/x.safetensors", raw({"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\2"))
    with pytest.raises(hf.errors.DamagedCheckpointError, match=r"'a'.*neither 0 nor 1"):
        hf.load(f"{place}/x.safetensors")


def test_a_tensor_in_two_files_names_both(place):
    write(f"{place}/x.safetensors", {"w": np.zeros(2)})
    write(f"{place}/y.safetensors", {"w": np.zeros(2)})
    with pytest.raises(ValueError, match=r"'w' is in 'x\.safetensors' and in 'y\.safetensors'"):
        hf.load(place)


def shards(place, weight_map):
    write(f"{place}/x.safetensors", {"a": np.zeros(2)})
    write(f"{place}/y.safetensors", {"b": np.zeros(2), "c": np.zeros(1)})
    put(f"{place}/model.safetensors.index.json", json.dumps({"weight_map": weight_map}).encode())


X, Y = "x.safetensors", "y.safetensors"


@pytest.mark.parametrize(
    ("weight_map", "match"),
    [
        ({"a": "z.safetensors"}, r"'a' into 'z\.safetensors', which is missing"),
        ({"a": X, "b": Y}, r"'c' of the file 'y\.safetensors'.*does not name it there"),
        ({"a": X, "b": X, "c": Y}, r"'b' of the file 'x\.safetensors'.*puts it there"),
        ({"a": X, "b": Y, "c": Y, "d": Y}, r"'d' of the file 'y\.safetensors'.*lacks it"),
        ({"a": "../x.safetensors"}, r"'a' into '\.\./x\.safetensors', which names no file"),
        ({"a": "/etc/x.safetensors"}, "which names no file"),
        ({"a": "x.bin"}, "which names no file"),
        ({"a": 3}, "which names no file"),
        ([], "has no object weight_map"),
        (None, "has no object weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_files_is_damage(weight_map, match, place):
    shards(place, weight_map)
    with pytest.raises(hf.errors.DamagedCheckpointError, match=match):
        hf.load(place)
    assert not hf.is_checkpoint(place)


TWICE = b'{"weight_map": {"a": "x", "a": "y"}}'


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", TWICE])
def test_an_index_that_is_no_index_is_damage(data, place):
    put(f"{place}/model.safetensors.index.json", data)
    with pytest.raises(hf.errors.DamagedCheckpointError, match="index"):
        hf.load(place)


def test_shards_without_an_index_must_all_be_there(place):
    for n in (1, 3):
        write(f"{place}/model-{n:05d}-of-00003.safetensors", {f"t{n}": np.zeros(1)})
    with pytest.raises(hf.errors.DamagedCheckpointError, match="00002-of-00003.*is missing"):
        hf.load(place)
    assert list(hf.load(f"{place}/model-00001-of-00003.safetensors")) == ["t1"]
    write(f"{place}/model-00002-of-00003.safetensors", {"t2": np.zeros(1)})
    assert list(hf.load(place)) == ["t1", "t2", "t3"]


def test_a_name_that_is_part_of_another_cannot_be_nested(place):
    write(f"{place}/x.safetensors", {"a": np.zeros(1), "a.b": np.zeros(1)})
    assert set(hf.load(f"{place}/x.safetensors")) == {"a", "a.b"}
    nested = hf.Context(safetensors=hf.options.SafetensorsOptions(nested=True))
    with pytest.raises(ValueError, match=r"'a\.b' cannot be nested"):
        hf.load(f"{place}/x.safetensors", context=nested)


def test_a_file_that_claims_a_large_header_is_not_read_for_it():
    backend, url = counted()
    put(f"{url}/x.safetensors", (99_999_999).to_bytes(8, "little") + bytes(200_000))
    backend.ranges.clear()
    with pytest.raises(hf.errors.DamagedCheckpointError, match="cut off"):
        hf.load(f"{url}/x.safetensors")
    assert sum(size for _, _, size in backend.ranges) <= 65_536


SOUND = safetensors.numpy.save(
    {"first": np.arange(6, dtype=np.float32).reshape(2, 3), "second": np.arange(4, dtype=np.int8)},
    {"format": "np"},
)
HEADER = 8 + int.from_bytes(SOUND[:8], "little")
EXPECTED = safetensors.numpy.load(SOUND)
PLACES = st.integers(0, len(SOUND))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "I8", "BOOL", "F4", "C64", "X"]) | values,
        "shape": st.lists(st.integers(-1, 2**66), max_size=5) | values,
        "data_offsets": st.lists(st.integers(-1, 40), max_size=3) | values,
    },
)
HEADERS = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]), entries | values)


def outcome(data):
    """What holdfast makes of a file: arrays, or one of its errors."""
    path = f"memory://fuzz-{uuid.uuid4().hex}/x.safetensors"
    put(path, data)
    try:
        found = hf.load(path)
    except (hf.errors.DamagedCheckpointError, hf.errors.MetadataError):
        return None
    finally:
        assert get(path) == data
    return found


def agrees(found, data):
    """Whatever is accepted, the library accepts, with the same bytes."""
    theirs = dict(safetensors.deserialize(data))
    assert found.keys() == theirs.keys()
    for name, array in found.items():
        assert list(array.shape) == list(theirs[name]["shape"])
        if array.dtype.name != "float4_e2m1fn":
            assert array.tobytes() == bytes(theirs[name]["data"])


fuzzed = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@fuzzed
@given(position=st.integers(0, HEADER - 1), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_header_is_an_error_or_what_the_library_reads(position, byte):
    data = bytearray(SOUND)
    data[position] = byte
    found = outcome(bytes(data))
    if found is not None:
        agrees(found, bytes(data))


@fuzzed
@given(start=PLACES, stop=PLACES, junk=st.binary(max_size=8))
def test_a_file_cut_or_filled_with_junk_is_an_error_or_what_the_library_reads(start, stop, junk):
    data = SOUND[: min(start, stop)] + junk + SOUND[max(start, stop) :]
    found = outcome(data)
    if found is not None:
        agrees(found, data)


@fuzzed
@given(header=HEADERS, data=st.binary(max_size=40))
def test_any_json_as_a_header_is_an_error_or_what_the_library_reads(header, data):
    file = raw(header, data)
    found = outcome(file)
    if found is not None:
        agrees(found, file)


def test_the_fuzzed_file_itself_loads():
    found = outcome(SOUND)
    assert all(np.array_equal(found[name], EXPECTED[name]) for name in EXPECTED)
