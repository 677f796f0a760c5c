import json

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast_metadata import (
    LEAF_KINDS,
    CustomNode,
    DictNode,
    Key,
    LeafNode,
    LeafSpec,
    MetadataError,
    NamedTupleNode,
    NewerFormatError,
    NoneNode,
    SequenceNode,
    TreeDocument,
    canonical_json,
    encode_scalar,
)
from holdfast_metadata.tree import children_of, steps_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
SIZES = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)
EXTRA = st.none() | st.dictionaries(TEXT.map("x-{}".format), st.integers(), min_size=1, max_size=2)
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT | st.binary(),
    lambda inner: st.lists(inner, max_size=3).map(tuple),
    max_leaves=3,
).map(Key.of)
VALUES = (
    st.integers().map(lambda v: ("int", v))
    | st.floats().map(lambda v: ("float", v))
    | st.booleans().map(lambda v: ("bool", v))
    | st.complex_numbers().map(lambda v: ("complex", v))
    | st.text(max_size=5).map(lambda v: ("str", v))
    | st.binary(max_size=5).map(lambda v: ("bytes", v))
    | st.integers(0, 255).map(lambda v: ("np.generic", np.uint8(v).view(ml_dtypes.float8_e4m3fn)))
)
SCALARS = VALUES.map(lambda v: LeafSpec(v[0], value=encode_scalar(*v)))
SHARDINGS = st.sampled_from([{"sharding_type": "A", "ids": [1, None]}, {"sharding_type": "B"}])
ARRAYS = st.builds(
    LeafSpec,
    kind=st.sampled_from(LEAF_KINDS),
    name=st.none() | TEXT,
    dtype=st.none() | TEXT,
    weak_type=st.booleans(),
    sharding=st.none() | SHARDINGS,
    key_impl=st.none() | TEXT,
    storage_dtype=st.none() | TEXT,
    extra=EXTRA,
    **dict.fromkeys(("shape", "chunk_shape", "write_shape"), st.none() | SIZES),
)


def with_keys(build):
    return lambda inner: st.lists(st.tuples(KEYS, inner), max_size=4).flatmap(
        lambda pairs: build(tuple(k for k, _ in pairs), tuple(c for _, c in pairs))
    )


def dicts(keys, children):
    return st.builds(DictNode, st.none() | TEXT, st.just(keys), st.just(children), EXTRA)


def customs(keys, children):
    style = st.sampled_from(["dataclass", "custom"])
    return st.builds(
        CustomNode, TEXT, st.just(keys), st.just(children), style, st.booleans(), EXTRA
    )


def namedtuples(inner):
    return st.lists(st.tuples(TEXT, inner), max_size=4).flatmap(
        lambda pairs: st.builds(
            NamedTupleNode,
            TEXT,
            st.just(tuple(f for f, _ in pairs)),
            st.just(tuple(c for _, c in pairs)),
            EXTRA,
        )
    )


def sequences(inner):
    children = st.lists(inner, max_size=4).map(tuple)
    return st.builds(SequenceNode, st.sampled_from(["list", "tuple"]), children, EXTRA)


NODES = st.recursive(
    st.builds(NoneNode, EXTRA) | st.builds(LeafNode, SCALARS | ARRAYS),
    lambda inner: (
        sequences(inner) | namedtuples(inner) | with_keys(dicts)(inner) | with_keys(customs)(inner)
    ),
    max_leaves=8,
)
DOCUMENTS = st.builds(
    TreeDocument,
    NODES,
    st.none() | TEXT,
    st.none() | TEXT,
    extra=EXTRA.map(lambda extra: extra or {}),
)


def leaf(kind="int", **fields):
    return LeafNode(LeafSpec(kind, **fields))


@given(DOCUMENTS)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_every_tree_comes_back_equal_and_in_the_same_bytes(document):
    data = document.to_bytes()
    found = TreeDocument.from_bytes(data)
    assert found == document
    assert found.to_bytes() == data
    assert canonical_json(json.loads(data)) == data


def test_a_document_looks_like_this():
    sharding = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
    root = DictNode(
        None,
        (Key.of("n"), Key.of(7), Key.of(("a", True))),
        (
            leaf(value="3", name="n"),
            SequenceNode("tuple", (NoneNode(), leaf("bool", value=False))),
            CustomNode(
                "m:C",
                (Key.of("w"),),
                (
                    leaf(
                        "jax.Array",
                        name="c.w",
                        shape=(2, 3),
                        dtype="float32",
                        weak_type=True,
                        sharding=sharding,
                        chunk_shape=(2, 3),
                        write_shape=(2, 3),
                    ),
                ),
                "dataclass",
            ),
        ),
    )
    assert json.loads(TreeDocument(root, "standard", "int keys").to_bytes()) == {
        "format_version": 1,
        "handler": "standard",
        "orbax_unreadable": "int keys",
        "shardings": [sharding],
        "root": {
            "node": "dict",
            "keys": ["n", ["int", "7"], ["tuple", ["a", ["bool", True]]]],
            "children": [
                {"leaf": "int", "name": "n", "value": "3"},
                {"node": "tuple", "children": [{"node": "none"}, {"leaf": "bool", "value": False}]},
                {
                    "node": "dataclass",
                    "type": "m:C",
                    "keys": ["w"],
                    "indexed": False,
                    "children": [
                        {
                            "leaf": "jax.Array",
                            "name": "c.w",
                            "shape": [2, 3],
                            "dtype": "float32",
                            "weak_type": True,
                            "sharding": 0,
                            "chunk_shape": [2, 3],
                            "write_shape": [2, 3],
                        }
                    ],
                },
            ],
        },
    }


def test_leaves_come_in_tree_order_with_their_paths():
    root = DictNode(
        "collections:OrderedDict",
        (Key.of("b"), Key.of(1)),
        (
            NamedTupleNode("m:Pair", ("x", "y"), (leaf(value="1"), NoneNode())),
            SequenceNode("list", (leaf(value="2"), SequenceNode("tuple", ()), leaf(value="3"))),
        ),
    )
    found = [(path, spec.value) for path, spec in TreeDocument(root).leaves()]
    assert found == [
        ((Key.of("b"), "x"), "1"),
        ((Key.of(1), 0), "2"),
        ((Key.of(1), 2), "3"),
    ]
    assert list(TreeDocument(leaf(value="1")).leaves()) == [((), LeafSpec("int", value="1"))]
    assert steps_of(NoneNode()) == children_of(NoneNode()) == ()


def test_a_sharding_is_written_once_however_many_leaves_have_it():
    one = {"ids": list(range(1000))}
    leaves = [leaf("jax.Array", sharding=dict(one)) for _ in range(50)]
    leaves += [leaf("jax.Array", sharding={"ids": []}), leaf("jax.Array", sharding=one)]
    document = TreeDocument(SequenceNode("list", tuple(leaves)))
    data = document.to_bytes()
    assert data.count(b"999") == 1
    assert len(json.loads(data)["shardings"]) == 2
    assert TreeDocument.from_bytes(data) == document


def stored(root, **fields):
    document = {"format_version": 1, "handler": None, "orbax_unreadable": None, "shardings": []}
    return canonical_json(document | {"root": root} | fields)


INT = {"leaf": "int", "value": "1"}
DICT = {"node": "dict", "keys": ["a"], "children": [INT]}
CUSTOM = {"node": "custom", "type": "m:C", "keys": ["a"], "indexed": True, "children": [INT]}
PAIR = {"node": "namedtuple", "type": "m:P", "fields": ["a"], "children": [INT]}


@pytest.mark.parametrize("root", [INT, DICT, CUSTOM, PAIR])
def test_the_examples_that_follow_are_readable(root):
    assert TreeDocument.from_bytes(stored(root)).to_bytes() == stored(root)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"leaf": "int64"}, ": unknown kind of leaf 'int64'; known are jax.Array, prng_key, np."),
        ({"leaf": ["int"]}, ": unknown kind of leaf ['int']; known are"),
        (INT | {"name": 1}, ": 'name' must be str, found 1"),
        (INT | {"dtype": None}, ": 'dtype' must be str, found None"),
        (INT | {"weak_type": 1}, ": 'weak_type' must be bool, found 1"),
        (INT | {"shape": 3}, ": 'shape' must be a list of sizes, found 3"),
        (INT | {"shape": "12"}, ": 'shape' must be a list of sizes, found '12'"),
        (INT | {"chunk_shape": [1, True]}, ": 'chunk_shape' must be a list of sizes, found [1, T"),
        (INT | {"write_shape": [-1]}, ": 'write_shape' must be a list of sizes, found [-1]"),
        (INT | {"sharding": {}}, ": 'sharding' must be int, found {}"),
        (INT | {"sharding": 0}, ": 'sharding' must be a position among 0 shardings, found 0"),
        (INT | {"sharding": -1}, ": 'sharding' must be a position among 0 shardings, found -1"),
        ({}, " lacks the field 'node'"),
        (None, " must be a JSON object, found null"),
        ([], " must be a JSON object, found list []"),
        ({"node": "set"}, ": 'node' must be one of none, dict, list, tuple, namedtuple, datac"),
        ({"node": 1}, ": 'node' must be str, found int 1"),
        ({"node": "list"}, " lacks the field 'children'"),
        (DICT | {"children": {}}, ": 'children' must be list, found dict {}"),
        (DICT | {"children": []}, ": a dict with 1 keys has 0 children"),
        (DICT | {"keys": "a"}, ": 'keys' must be list, found str 'a'"),
        (DICT | {"keys": [1]}, ": 1 is no stored key"),
        (DICT | {"keys": [["int", "x"]]}, ": 'x' is no stored int"),
        (DICT | {"type": 1}, ": 'type' must be str, found int 1"),
        (PAIR | {"fields": [1]}, ": 'fields' must hold str, found int 1"),
        (PAIR | {"type": None}, ": 'type' must be str, found null"),
        (CUSTOM | {"indexed": 1}, ": 'indexed' must be bool, found int 1"),
        ({"node": "dataclass", "children": []}, " lacks the field 'type'"),
    ],
)
def test_a_damaged_node_is_refused_with_its_place(node, message):
    below = {"node": "list", "children": [INT, {"node": "tuple", "children": [node]}]}
    with pytest.raises(MetadataError) as caught:
        TreeDocument.from_bytes(stored(below), source="run/7/state/_TREE.json")
    assert str(caught.value).startswith("run/7/state/_TREE.json: root/1/0" + message)


@pytest.mark.parametrize("name", ["format_version", "handler", "orbax_unreadable", "root"])
def test_a_missing_or_mistyped_field_is_named(name):
    document = json.loads(stored(INT))
    with pytest.raises(MetadataError, match=f"^t: '{name}' must be "):
        TreeDocument.from_bytes(canonical_json(document | {name: [1]}), source="t")
    del document[name]
    with pytest.raises(MetadataError, match=f"^t lacks the field '{name}'$"):
        TreeDocument.from_bytes(canonical_json(document), source="t")


def test_a_newer_tree_is_refused_before_anything_else_is_looked_at():
    with pytest.raises(NewerFormatError, match="t has format version 2; this holdfast reads up"):
        TreeDocument.from_bytes(b'{"format_version":2,"root":{"node":"hypercube"}}', source="t")


def test_unknown_fields_are_kept_and_written_back_on_every_level():
    children = [{"node": "none", "why": 1}, INT | {"unit": "K"}]
    root = {"node": "list", "children": children, "tied": [0, 1]}
    data = stored(root, zone={"a": None})
    document = TreeDocument.from_bytes(data)
    assert document.extra == {"zone": {"a": None}}
    assert document.root.extra == {"tied": [0, 1]}
    assert document.to_bytes() == data


def test_a_tree_too_deep_for_python_is_refused_both_ways():
    deep = b'{"children":[' * 5000 + b'{"node":"none"}' + b'],"node":"list"}' * 5000
    with pytest.raises(MetadataError, match="nested too deeply|recursion"):
        TreeDocument.from_bytes(stored(INT).replace(canonical_json(INT), deep))
    node = NoneNode()
    for _ in range(3000):
        node = SequenceNode("list", (node,))
    with pytest.raises(MetadataError, match="the tree is nested too deeply"):
        TreeDocument(node).to_bytes()


def test_thousands_of_leaves_stay_compact():
    leaves = tuple(
        leaf(
            "jax.Array",
            name=f"layers.{index}.kernel",
            shape=(64, 64),
            dtype="float32",
            sharding={"ids": list(range(500))},
            chunk_shape=(64, 64),
            write_shape=(64, 64),
        )
        for index in range(5000)
    )
    document = TreeDocument(SequenceNode("list", leaves))
    data = document.to_bytes()
    assert len(data) < 5000 * 160
    assert TreeDocument.from_bytes(data) == document
