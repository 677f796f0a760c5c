import cmath
import math
import struct

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from holdfast_metadata import (
    Key,
    MetadataError,
    canonical_json,
    decode_scalar,
    digest_bytes,
    dtype_from_name,
    dtype_name,
    encode_scalar,
    matches_digest,
    parse_json,
)

NUMPY = "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64"
NUMPY += " complex64 complex128"
EXTENSIONS = """bfloat16 float4_e2m1fn float6_e2m3fn float6_e3m2fn float8_e3m4 float8_e4m3
float8_e4m3b11fnuz float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
int2 int4 uint2 uint4"""
DTYPES = [*NUMPY.split(), *EXTENSIONS.split()]


def through_json(kind, value):
    return decode_scalar(kind, parse_json(canonical_json(encode_scalar(kind, value))))


def bits(value):
    return struct.pack(">d", value)


@given(st.integers())
@example(2**2048)
@example(-(2**2048))
@example(2**2048 - 1)
@example(7**90_000)
@example(-(10**5000))
def test_every_int_comes_back(value):
    found = through_json("int", value)
    assert type(found) is int
    assert found == value


@given(st.floats() | st.integers(0, 2**64 - 1).map(lambda n: struct.unpack(">d", n.to_bytes(8))[0]))
@example(-0.0)
@example(float("-inf"))
@example(struct.unpack(">d", bytes.fromhex("fff0000000000001"))[0])
def test_every_float_comes_back_bit_for_bit(value):
    found = through_json("float", value)
    assert type(found) is float
    assert bits(found) == bits(value)


@given(st.complex_numbers())
@example(complex(-0.0, float("nan")))
@example(complex(float("inf"), -0.0))
def test_every_complex_comes_back_bit_for_bit(value):
    found = through_json("complex", value)
    assert (bits(found.real), bits(found.imag)) == (bits(value.real), bits(value.imag))
    assert cmath.isnan(found) == cmath.isnan(value)


@given(st.text(st.characters()))
@example("\ud83d\ude00")
@example("\U0001f600")
@example("")
def test_every_text_comes_back_also_with_lone_surrogates(value):
    assert through_json("str", value) == value


@given(st.binary())
def test_every_bytes_come_back(value):
    assert through_json("bytes", value) == value


@pytest.mark.parametrize("value", [True, False])
def test_bools_stay_bools(value):
    assert through_json("bool", value) is value


@pytest.mark.parametrize("name", DTYPES)
def test_every_bit_pattern_of_a_numpy_scalar_comes_back(name):
    dtype = dtype_from_name(name)
    raw = np.random.default_rng(0).integers(0, 256, 64 * dtype.itemsize, np.uint8)
    for value in raw.view(dtype) if name != "bool" else np.array([True, False]):
        found = through_json("np.generic", value)
        assert type(found) is type(value)
        assert found.tobytes() == value.tobytes()


def test_stored_scalars_look_like_this():
    assert encode_scalar("int", -12) == "-12"
    assert encode_scalar("int", 2**2048) == "0x1" + "0" * 512
    assert encode_scalar("float", -0.0) == "-0x0.0p+0"
    assert encode_scalar("float", math.inf) == "inf"
    assert encode_scalar("float", math.nan) == "nan:7ff8000000000000"
    assert encode_scalar("complex", 1 - 2j) == ["0x1.0000000000000p+0", "-0x1.0000000000000p+1"]
    assert encode_scalar("str", "\ud800x") == [0xD800, ord("x")]
    assert encode_scalar("bytes", b"\x00\xff") == "AP8="
    assert encode_scalar("np.generic", np.float32(1)) == ["float32", "AACAPw=="]
    assert encode_scalar("np.generic", np.int16(258)) == ["int16", "AgE="]


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        *(
            ("int", bad)
            for bad in (1, None, "", "1.0", "01", "-", "--1", " 1", "0X1", "\u0661", "1_0")
        ),
        *(
            ("float", bad)
            for bad in (1.0, None, "x", "0x1p5000", "nan:", "nan:00", "nan:" + 16 * "0")
        ),
        *(("bool", bad) for bad in (1, 0, "true", None)),
        *(("complex", bad) for bad in ("ab", ["0x1p0"], ["inf", 1], None)),
        *(("str", bad) for bad in (1, None, {}, ["a"], [-1], [0x110000])),
        *(("bytes", bad) for bad in (1, None, "=", "a?==")),
        *(("np.generic", bad) for bad in (None, ["int8"], ["int16", "AA=="], ["int8", ""], "ab")),
    ],
)
def test_what_is_no_stored_scalar_is_refused(kind, stored):
    with pytest.raises(MetadataError, match=f" is no stored {kind}$"):
        decode_scalar(kind, stored)


def test_kinds_without_an_inline_value_are_refused():
    with pytest.raises(MetadataError, match=r"a leaf of kind 'jax\.Array' has no inline value"):
        encode_scalar("jax.Array", 1)
    with pytest.raises(MetadataError, match="a leaf of kind 'prng_key' has no inline value"):
        decode_scalar("prng_key", 1)
    with pytest.raises(MetadataError, match="dtype <U1 cannot be stored"):
        encode_scalar("np.generic", np.str_("a"))


PYTHON_KEYS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(),
    lambda inner: st.lists(inner).map(tuple),
)


@given(PYTHON_KEYS)
@example("1")
@example(-0.0)
@example((1, ("a", None), b"", 2**3000))
def test_every_key_comes_back_with_its_type(value):
    key = Key.of(value)
    stored = Key.from_json(parse_json(canonical_json(key.to_json())))
    assert stored == key
    assert repr(stored.python()) == repr(value)


def test_keys_of_different_types_differ():
    keys = [Key.of(value) for value in (1, True, 1.0, "1", b"1", (1,), (True,), None, "None")]
    assert len(set(keys)) == len(keys)
    assert len({canonical_json(key.to_json()) for key in keys}) == len(keys)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), "a key that is NaN equals no key"),
        ((1, (float("nan"),)), "a key that is NaN equals no key"),
        (np.int64(1), "a key of type int64 cannot be stored; accepted are str, int, bool, float"),
        (frozenset(), "a key of type frozenset cannot be stored"),
        (("a", ...), "a key of type ellipsis cannot be stored"),
    ],
)
def test_keys_that_cannot_be_held_are_refused(value, message):
    with pytest.raises(MetadataError, match=message):
        Key.of(value)


@pytest.mark.parametrize(
    "stored",
    [
        *(None, 1, {}, [], ["int"], ["int", 1], ["bool", 1], ["x", "1"], ["none", 1]),
        *(["tuple", "ab"], ["tuple", [1]], ["float", "nan"], ["float", "nan:7ff8000000000000"]),
    ],
)
def test_what_is_no_stored_key_is_refused(stored):
    with pytest.raises(MetadataError, match="is no stored"):
        Key.from_json(stored)


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_has_a_name_of_its_own(name):
    dtype = dtype_from_name(name)
    assert dtype_name(dtype) == name
    assert dtype_name(dtype.type) == name
    assert dtype_name(dtype.newbyteorder(">")) == name
    assert dtype_name(dtype.newbyteorder("<")) == name


def test_every_dtype_of_ml_dtypes_is_known():
    kinds = {
        k for k in vars(ml_dtypes).values() if isinstance(k, type) and issubclass(k, np.generic)
    }
    assert {dtype_from_name(dtype_name(kind)) for kind in kinds} == {np.dtype(k) for k in kinds}


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        ("<U3", "dtype <U3 cannot be stored; accepted are bool, integers, floats"),
        (object, "dtype object cannot be stored"),
        ("datetime64[s]", r"dtype datetime64\[s\] cannot be stored"),
        ([("a", "i4")], "cannot be stored"),
        (None, "None is no dtype"),
        ("float99", "'float99' is no dtype"),
    ],
)
def test_dtypes_that_no_checkpoint_holds_are_refused(dtype, message):
    with pytest.raises(MetadataError, match=message):
        dtype_name(dtype)


def test_an_unknown_dtype_is_named():
    with pytest.raises(MetadataError, match=r"^unknown dtype 'float3'; known are bool, int8, "):
        dtype_from_name("float3")


@given(st.binary())
def test_a_digest_is_of_the_bytes_whatever_holds_them(data):
    expected = digest_bytes(data)
    assert digest_bytes(bytearray(data)) == expected
    assert digest_bytes(memoryview(data)) == expected
    assert digest_bytes(np.frombuffer(data, np.uint8) if data else np.zeros((0, 3))) == expected
    assert matches_digest(data, expected)
    assert not matches_digest(data + b"\0", expected)


@pytest.mark.parametrize("name", DTYPES)
def test_arrays_of_every_dtype_have_digests(name):
    array = np.arange(2).astype(dtype_from_name(name)).reshape(1, 2)
    assert digest_bytes(array) == digest_bytes(array.tobytes())
    assert digest_bytes(array[0, 1]) == digest_bytes(array[0, 1].tobytes())


def test_a_known_digest():
    assert digest_bytes(b"") == "xxh3_64:2d06800538d394c2"


@pytest.mark.parametrize(
    "buffer", [np.ones((4, 4))[:, ::2], np.asfortranarray(np.ones((2, 3))), "text", 5]
)
def test_what_is_no_contiguous_buffer_has_no_digest(buffer):
    with pytest.raises(MetadataError, match="has no digest, a contiguous buffer has"):
        digest_bytes(buffer)


@pytest.mark.parametrize("expected", ["", "xxh3_64:", "sha256:" + "0" * 64, "xxh3_64:0"])
def test_a_digest_that_cannot_be_checked_is_no_mismatch(expected):
    with pytest.raises(MetadataError, match="is no digest; known are xxh3_64:"):
        matches_digest(b"", expected)
