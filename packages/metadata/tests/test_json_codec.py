import json
from collections import OrderedDict
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_metadata import (
    MetadataError,
    canonical_json,
    ordered_json,
    parse_json,
    require_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=15,
)


@given(PLAIN)
def test_what_require_json_lets_pass_comes_back_equal(value):
    require_json(value, what="it")
    assert parse_json(canonical_json(value)) == value
    assert parse_json(ordered_json(value)) == value


@given(st.dictionaries(TEXT, PLAIN, max_size=6))
def test_equal_values_give_equal_bytes_in_any_order(value):
    backwards = dict(reversed(value.items()))
    assert canonical_json(backwards) == canonical_json(value)
    assert list(parse_json(ordered_json(backwards))) == list(backwards)


def test_canonical_json_is_sorted_compact_ascii():
    value = {"ü": [1, 2.5, -0.0, None], "a": {"b": True, "a": "\n"}}
    expected = rb'{"a":{"a":"\n","b":true},"\u00fc":[1,2.5,-0.0,null]}'
    assert canonical_json(value) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"x", {(1,): 2}])
def test_canonical_json_refuses_what_is_not_json(value):
    with pytest.raises(MetadataError, match="cannot be written as JSON"):
        canonical_json(value)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "Expecting value"),
        (b'{"a":1', "Expecting"),
        (b'{"a":1} x', "Extra data"),
        (b"\xff", "utf-8"),
        (b"\xef\xbb\xbf{}", "Expecting value"),
        (b'{"a":1,"b":2,"a":3,"b":4}', r"duplicate keys \['a', 'b'\]"),
        (b'[{"x":{"a":1,"a":1}}]', r"duplicate keys \['a'\]"),
        (b"NaN", "NaN is not JSON"),
        (b"[-Infinity]", "-Infinity is not JSON"),
        (b"[1e999]", "1e999 is beyond the range of a float"),
        (b"[" * 100_000, "recursion"),
        (b"1" * 5000, "4300"),
    ],
)
def test_what_is_not_strict_json_is_refused_with_its_source(data, problem):
    with pytest.raises(MetadataError, match=rf"^run/7/_X is not valid JSON: .*{problem}"):
        parse_json(data, source="run/7/_X")


def test_lenient_reading_takes_what_pythons_json_takes():
    found = parse_json(b'{"a":1,"a":2,"loss":NaN,"best":-Infinity}', lenient=True)
    assert found["a"] == 2
    assert np.isnan(found["loss"])
    assert found["best"] == float("-inf")
    with pytest.raises(MetadataError, match="it is not valid JSON"):
        parse_json(b"{", source="it", lenient=True)


def test_subclasses_of_plain_types_pass_and_come_back_plain():
    value = OrderedDict(loss=np.float64(0.5), shape=(1, 2), on=True)
    require_json(value, what="metrics")
    assert json.loads(canonical_json(value)) == {"loss": 0.5, "shape": [1, 2], "on": True}
    require_json(MappingProxyType({"a": 1}), what="metrics")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": [1, {"b": {1}}]}, "metrics['a'][1]['b'] is {1} of type set; JSON holds text, "),
        ({"a": float("nan")}, "metrics['a'] is nan; JSON numbers are finite"),
        ([0.5, float("-inf")], "metrics[1] is -inf; JSON numbers are finite"),
        ({"a": {1: 2}}, "metrics['a'] has the key 1 (int); JSON objects have text keys"),
        ({"a": {None: 2}}, "metrics['a'] has the key None (NoneType); JSON objects have text"),
        ({"a": np.float32(1)}, "metrics['a'] is np.float32(1.0) of type float32; JSON holds"),
        (b"x", "metrics is b'x' of type bytes; JSON holds text, numbers, true, false, null"),
        (("\ud83d\ude00",), r"metrics[0] is '\ud83d\ude00'; text with lone surrogates is not"),
        ({"\ud800": 1}, r"metrics has the key '\ud800', which is '\ud800'; text with lone"),
    ],
)
def test_a_callers_value_is_refused_with_the_place_inside_of_it(value, message):
    with pytest.raises(MetadataError) as caught:
        require_json(value, what="metrics")
    assert str(caught.value).startswith(message)


def test_a_number_in_an_array_is_refused_with_what_makes_a_number_of_it():
    with pytest.raises(MetadataError, match=r"lists and objects; \.item\(\) makes one of it"):
        require_json({"loss": np.asarray(0.5)}, what="metrics")


def test_an_int_that_json_cannot_take_is_refused_before_it_is_written():
    with pytest.raises(MetadataError, match="cannot be written as JSON: Exceeds the limit"):
        canonical_json(10**5000)
    with pytest.raises(MetadataError, match="metrics cannot be written as JSON: Exceeds the"):
        require_json({"n": 10**5000}, what="metrics")


def test_a_value_that_contains_itself_is_refused():
    value = {}
    value["me"] = [value]
    with pytest.raises(MetadataError, match="custom_metadata contains itself or is nested too"):
        require_json(value, what="custom_metadata")
