"""`hf.tree` and `hf.arrays`: merging, flattening and comparing PyTrees."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict

import holdfast as hf

Point = collections.namedtuple("Point", ["x", "y"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Pair:
    a: object
    b: object


@pytest.mark.parametrize(
    ("trees", "merged"),
    [
        ((), {}),
        (({"a": 1},), {"a": 1}),
        (({"a": 1}, {"b": 2}, {"c": {3: 4}}), {"a": 1, "b": 2, "c": {3: 4}}),
        (({"a": {"x": 1}}, {"a": {"y": 2}}), {"a": {"x": 1, "y": 2}}),
        (([{"x": 1}, {}], [{"y": 2}, {"z": 3}]), [{"x": 1, "y": 2}, {"z": 3}]),
        ((({"x": 1},), ({"y": 2},)), ({"x": 1, "y": 2},)),
        ((Point({"a": 1}, {}), Point({"b": 2}, {"c": 3})), Point({"a": 1, "b": 2}, {"c": 3})),
        ((Pair({"a": 1}, {}), Pair({"b": 2}, {"c": 3})), Pair({"a": 1, "b": 2}, {"c": 3})),
        ((FrozenDict(a=1), FrozenDict(b=2)), FrozenDict(a=1, b=2)),
        (({}, {"a": {}}), {"a": {}}),
        (({"a": {}}, {"a": {"b": 1}}), {"a": {"b": 1}}),
    ],
    ids=str,
)
def test_trees_are_merged_by_key_and_element(trees, merged):
    found = hf.tree.merge(*trees)
    assert found == merged
    assert type(found) is type(merged)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 1}}, "a/b is in two"),
        ({"a": None}, {"a": 1}, "a is in two"),
        (1, 2, r"\(root\) is in two"),
        ({"a": 1}, {"a": {"b": 2}}, "a is a int and a dict"),
        ([{"a": 1}], ({"b": 1},), r"\(root\) is a list and a tuple"),
        ({"a": [{}]}, {"a": [{}, {}]}, "a sequences have 1 and 2 elements"),
        (FrozenDict(a=1), {"b": 1}, "is a FrozenDict and a dict"),
        ({"a": 1, "b": [2]}, {"a": 1, "b": [3]}, "a is in two of them; b/0 is in two"),
    ],
    ids=str,
)
def test_what_is_there_twice_is_refused_and_every_path_named(first, second, message):
    with pytest.raises(ValueError, match=message):
        hf.tree.merge(first, second)


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        ({"a": 1, "b": 2}, {"a": 3, "b": None}, {"a": 3, "b": 2}),
        (Point(1, None), Point(None, 2), Point(1, 2)),
        ([1, 2], [3, None], [3, 2]),
        ({"a": 1}, {"a": {"b": 2}}, {"a": {"b": 2}}),
        ({"a": {"b": 2}}, {"a": 1}, {"a": 1}),
        ({"a": {"b": 2}}, {"a": None}, {"a": {"b": 2}}),
        ([{"a": 1}], ({"b": 1},), ({"a": 1, "b": 1},)),
        (FrozenDict(a=1), {"b": 1}, {"a": 1, "b": 1}),
        ({"a": [1]}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
    ids=str,
)
def test_with_overwrite_the_later_value_wins_unless_it_is_none(first, second, merged):
    found = hf.tree.merge(first, second, overwrite=True)
    assert found == merged
    assert type(found) is type(merged)


def test_sequences_of_different_lengths_are_refused_even_then():
    with pytest.raises(ValueError, match="have 1 and 2 elements"):
        hf.tree.merge([1], [2, 3], overwrite=True)


def test_a_merge_changes_none_of_its_trees_and_may_be_told_what_a_leaf_is():
    first, second = {"a": {"x": np.ones(2)}}, {"a": {"y": 1}}
    hf.tree.merge(first, second)
    assert list(first["a"]) == ["x"]
    assert list(second["a"]) == ["y"]
    whole = hf.tree.merge(first, second, overwrite=True, is_leaf=lambda n: "y" in str(n))
    assert whole is second


def test_a_defaultdict_and_an_ordered_one_stay_what_they_are():
    counts = collections.defaultdict(int, a=1)
    merged = hf.tree.merge(counts, collections.defaultdict(int, b=2))
    assert merged == {"a": 1, "b": 2}
    assert merged["c"] == 0
    ordered = collections.OrderedDict(b=1, a=2)
    merged = hf.tree.merge(ordered, collections.OrderedDict(c=3))
    assert list(merged.items()) == [("b", 1), ("a", 2), ("c", 3)]


TREE = {"p": Point(1, Pair(2, {3: 4})), "l": [5, (6, None)], "e": {}}


def test_a_flat_dict_has_every_leaf_by_its_path_and_gives_the_tree_back():
    flat = hf.tree.to_flat_dict(TREE)
    assert flat == {
        ("p", "x"): 1,
        ("p", "y", "a"): 2,
        ("p", "y", "b", "3"): 4,
        ("l", "0"): 5,
        ("l", "1", "0"): 6,
    }
    assert hf.tree.is_flat_dict(flat)
    assert hf.tree.from_flat_dict(flat, target=TREE) == TREE
    full = hf.tree.to_flat_dict(TREE, sep="/", keep_empty_nodes=True)
    assert full["e"] == {}
    assert full["l/1/1"] is None
    assert hf.tree.from_flat_dict({"a/b": 1, "a/c": 2}, sep="/") == {"a": {"b": 1, "c": 2}}
    assert hf.tree.to_flat_dict(5) == {(): 5}
    assert hf.tree.from_flat_dict({(): 5}) == 5


def test_a_flat_dict_loses_nothing_silently():
    with pytest.raises(ValueError, match="two leaves have the path"):
        hf.tree.to_flat_dict({1: "int", "1": "text"})
    with pytest.raises(ValueError, match="two leaves have the path 'a/b'"):
        hf.tree.to_flat_dict({"a/b": 1, "a": {"b": 2}}, sep="/")
    with pytest.raises(KeyError, match="in the target and not"):
        hf.tree.from_flat_dict({("a",): 1}, target={"a": 0, "b": 0})
    with pytest.raises(ValueError, match="not in the target"):
        hf.tree.from_flat_dict({("a",): 1, ("z",): 1}, target={"a": 0})
    for flat in ({("a",): 1, ("a", "b"): 2}, {("a", "b"): 2, ("a",): 1}):
        with pytest.raises(ValueError, match="inside"):
            hf.tree.from_flat_dict(flat)


def test_a_serialized_tree_has_plain_containers_and_comes_back_with_a_target():
    plain = hf.tree.serialize_tree(TREE, keep_empty_nodes=True)
    assert plain == {"p": {"x": 1, "y": {"a": 2, "b": {"3": 4}}}, "l": [5, [6, None]], "e": {}}
    assert hf.tree.deserialize_tree(plain, TREE, keep_empty_nodes=True) == TREE
    assert hf.tree.serialize_tree({"e": {}, "n": None, "x": 1}) == {"x": 1}
    with pytest.raises(ValueError, match="no leaves"):
        hf.tree.serialize_tree({"e": {}, "n": None})
    with pytest.raises(KeyError):
        hf.tree.deserialize_tree({"a": 1}, {"a": 0, "b": 0})


def test_parameter_names_are_paths_joined_by_dots():
    names = hf.tree.get_param_names(TREE)
    assert names["p"].y.b[3] == "p.y.b.3"
    assert names["l"][1] == ("l.1.0", "l.1.1")
    assert names["e"] == "e"
    assert hf.tree.get_param_names(TREE, include_empty_nodes=False)["e"] == {}


def test_differences_have_their_places():
    difference, diff = hf.tree.tree_difference, hf.tree.Diff
    assert difference(TREE, TREE) is None
    assert difference([1, 2], [1]) == diff((list, 2), (list, 1))
    assert difference({"a": 1}, {"a": None}) == {"a": diff(int, type(None))}
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {}]}) == {"a": {1: {"b": diff(2, None)}}}
    assert difference({"a": 1}, {"a": 2}) is None
    assert difference({"a": 1}, {"a": 2}, leaves_equal=int.__eq__) == {"a": diff(1, 2)}


def test_a_structure_is_trimmed_to_a_template():
    left_out = []
    template = {"a": Point(0, 0), "l": [0]}
    structure = {"a": {"x": 1, "y": 2, "z": 3}, "l": (4,), "b": 5}
    found = hf.tree.tree_trim(
        template, structure, trimmed_structure_callback=lambda *seen: left_out.append(seen)
    )
    assert found == {"a": Point(1, 2), "l": [4]}
    assert left_out == [(("a", "z"), 3), (("b",), 5)]
    for bad in ({"a": {"x": 1}, "l": [1]}, {"a": Point(1, 2), "l": [1, 2]}, {"a": 1, "l": [1]}):
        with pytest.raises(ValueError, match=r"^(a|l): the (template|structure)"):
            hf.tree.tree_trim(template, bad)


def test_descriptions_of_arrays_are_targets_of_a_load():
    describe = hf.arrays.to_shape_dtype_struct
    array = jnp.ones((2, 3))
    assert describe(array).sharding == array.sharding
    assert describe(np.ones(4), dtype=np.float16) == jax.ShapeDtypeStruct((4,), np.float16)
    assert (describe(3), describe(3, scalar_dtype=float)) == (3, 3.0)
    with pytest.raises(ValueError, match="str has no shape"):
        describe("text")
    hf.save("memory://tree/described", {"w": array, "n": 1}, overwrite=True)
    found = hf.metadata("memory://tree/described").metadata
    loaded = hf.load("memory://tree/described", jax.tree.map(describe, found))
    assert np.array_equal(loaded["w"], array)
