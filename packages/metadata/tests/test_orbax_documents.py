"""Orbax's documents, as orbax-checkpoint 0.12.8 was seen to write and read them."""

import base64
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast_metadata import MetadataError, canonical_json
from holdfast_metadata.orbax import (
    ArrayMetadataEntry,
    ArrayMetadataFile,
    ItemEntry,
    ItemMetadata,
    RootMetadata,
    ShardingFile,
    StepMetadata,
    StringsFile,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
SIZES = st.lists(st.integers(0, 2**40), max_size=4).map(tuple)
OBJECT = st.dictionaries(TEXT, st.integers() | st.none() | TEXT | st.lists(TEXT), max_size=3)
STEPS = st.builds(
    StepMetadata,
    item_handlers=st.none() | TEXT | st.dictionaries(TEXT, TEXT),
    init_timestamp_nsecs=st.none() | st.integers(),
    commit_timestamp_nsecs=st.none() | st.integers(),
    custom_metadata=OBJECT,
)
ROOTS = st.builds(RootMetadata, OBJECT, OBJECT)
ITEMS = st.builds(
    ItemMetadata,
    st.lists(
        st.builds(
            ItemEntry,
            st.lists(st.tuples(TEXT, st.sampled_from([1, 2])), max_size=3).map(tuple),
            st.sampled_from(["jax.Array", "np.ndarray", "scalar", "string", "None", "Dict"]),
            st.booleans(),
            st.none() | SIZES,
        )
    ).map(tuple),
    use_ocdbt=st.booleans(),
    use_zarr3=st.booleans(),
    store_array_data_equal_to_fill_value=st.booleans(),
    custom_metadata=OBJECT,
)
ARRAY_FILES = st.builds(
    ArrayMetadataFile,
    st.lists(st.builds(ArrayMetadataEntry, TEXT, SIZES, SIZES, st.none() | TEXT)).map(tuple),
)
SHARDINGS = st.builds(ShardingFile, st.dictionaries(TEXT, OBJECT))


@given(STEPS | ROOTS | ITEMS | ARRAY_FILES | SHARDINGS)
def test_every_document_comes_back_equal(document):
    assert type(document).from_bytes(document.to_bytes()) == document


@pytest.mark.parametrize(
    "kind", [StepMetadata, RootMetadata, ItemMetadata, ArrayMetadataFile, ShardingFile]
)
@pytest.mark.parametrize("data", [b"[]", b"null", b'{"a"', b"\xff"])
def test_what_is_no_object_is_refused_with_its_source(kind, data):
    with pytest.raises(MetadataError, match=r"^here (is not valid JSON|must be a JSON object)"):
        kind.from_bytes(data, source="here")


# _CHECKPOINT_METADATA

STEP = """{"item_handlers": {"state":
"orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"},
 "metrics": {}, "performance_metrics": {}, "init_timestamp_nsecs": 1795460887542974208,
 "commit_timestamp_nsecs": 1795460887697392040, "custom_metadata": {"k": 1}}"""


def test_a_step_document_of_orbax_is_read():
    assert StepMetadata.from_bytes(STEP.encode()) == StepMetadata(
        item_handlers={
            "state": "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler"
        },
        init_timestamp_nsecs=1795460887542974208,
        commit_timestamp_nsecs=1795460887697392040,
        custom_metadata={"k": 1},
    )


def test_a_step_document_is_written_with_orbaxs_fields_and_no_others():
    assert json.loads(StepMetadata("a.B", 1, 2).to_bytes()) == {
        "item_handlers": "a.B",
        "metrics": {},
        "performance_metrics": {},
        "init_timestamp_nsecs": 1,
        "commit_timestamp_nsecs": 2,
        "custom_metadata": {},
    }


@pytest.mark.parametrize("data", [b"", b" \n", b"{}", b'{"metrics":null,"custom_metadata":null}'])
def test_an_empty_step_document_is_no_damage(data):
    assert StepMetadata.from_bytes(data) == StepMetadata()


def test_what_is_no_handler_string_is_a_handler_that_nobody_knows():
    found = StepMetadata.from_bytes(b'{"item_handlers":{"a":"x.Y","b":null,"c":3}}')
    assert found.item_handlers == {"a": "x.Y"}


def test_nan_is_read_where_pythons_json_wrote_it():
    data = b'{"metrics":{"loss":NaN},"custom_metadata":{"best":Infinity}}'
    found = StepMetadata.from_bytes(data)
    assert math.isnan(found.metrics["loss"])
    assert found.custom_metadata == {"best": math.inf}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"item_handlers":[]}', "'item_handlers' must be dict or str or null, found list []"),
        (b'{"init_timestamp_nsecs":1.5}', "'init_timestamp_nsecs' must be int or null, found fl"),
        (b'{"custom_metadata":[1]}', "'custom_metadata' must be dict or null, found list [1]"),
        (b'{"metrics":5}', "'metrics' must be dict or null, found int 5"),
    ],
)
def test_what_orbax_refuses_in_a_step_document_is_refused(data, message):
    with pytest.raises(MetadataError) as caught:
        StepMetadata.from_bytes(data, source="7/_CHECKPOINT_METADATA")
    assert str(caught.value).startswith("7/_CHECKPOINT_METADATA: " + message)


@pytest.mark.parametrize("kind", [StepMetadata, RootMetadata])
def test_unknown_fields_are_kept_but_never_written_beside_custom_metadata(kind):
    data = canonical_json(json.loads(kind().to_bytes()) | {"zone": "x"})
    found = kind.from_bytes(data)
    assert found.extra == {"zone": "x"}
    assert found.to_bytes() == data
    with pytest.raises(MetadataError, match="refuses unknown fields beside custom_metadata"):
        kind(custom_metadata={"k": 1}, extra={"zone": "x"}).to_bytes()


@pytest.mark.parametrize("kind", [StepMetadata, RootMetadata])
@pytest.mark.parametrize(
    ("custom", "message"),
    [
        ([1], "custom_metadata must be a mapping with text keys, found list [1]"),
        ("x", "custom_metadata must be a mapping with text keys, found str 'x'"),
        ({1: 2}, "custom_metadata has the key 1 (int)"),
        ({"a": {"b": math.nan}}, "custom_metadata['a']['b'] is nan"),
    ],
)
def test_custom_metadata_that_would_break_orbax_is_never_written(kind, custom, message):
    with pytest.raises(MetadataError) as caught:
        kind(custom_metadata=custom).to_bytes()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("name", ["init_timestamp_nsecs", "commit_timestamp_nsecs"])
def test_timestamps_are_never_written_as_floats(name):
    with pytest.raises(MetadataError, match=rf"^{name} must be int or None, found 1\.5"):
        StepMetadata(**{name: 1.5}).to_bytes()


def test_a_root_document_of_orbax_is_read():
    found = RootMetadata.from_bytes(b'{"internal_metadata": {}, "custom_metadata": {"r": 1}}')
    assert found == RootMetadata({"r": 1})
    assert RootMetadata.from_bytes(b"{}") == RootMetadata()


# _METADATA

ITEM = """{"tree_metadata": {
   "('l', '0')": {"key_metadata": [{"key": "l", "key_type": 2}, {"key": "0", "key_type": 1}],
                  "value_metadata": {"value_type": "jax.Array", "skip_deserialize": false,
                                     "write_shape": [2]}},
   "('none',)": {"key_metadata": [{"key": "none", "key_type": 2}],
                 "value_metadata": {"value_type": "None", "skip_deserialize": true}}},
 "use_ocdbt": true, "use_zarr3": true, "store_array_data_equal_to_fill_value": true,
 "custom_metadata": null}"""
ENTRIES = (
    ItemEntry((("l", 2), ("0", 1)), "jax.Array", False, (2,)),
    ItemEntry((("none", 2),), "None", True),
)


def test_an_item_document_of_orbax_is_read_and_written_field_by_field():
    assert ItemMetadata.from_bytes(ITEM.encode()) == ItemMetadata(ENTRIES)
    written = ItemMetadata(ENTRIES).to_bytes()
    assert json.loads(written) == json.loads(ITEM)
    assert list(json.loads(written)["tree_metadata"]) == ["('l', '0')", "('none',)"]


def test_a_bare_leaf_has_an_empty_path():
    written = json.loads(ItemMetadata((ItemEntry((), "np.ndarray"),)).to_bytes())
    assert written["tree_metadata"] == {
        "()": {
            "key_metadata": [],
            "value_metadata": {"value_type": "np.ndarray", "skip_deserialize": False},
        }
    }


def test_paths_that_differ_only_in_the_types_of_their_keys_both_stay():
    entries = (ItemEntry((("0", 1),), "scalar"), ItemEntry((("0", 2),), "np.ndarray"))
    assert ItemMetadata.from_bytes(ItemMetadata(entries).to_bytes()).entries == entries


def test_what_an_item_document_may_leave_out_has_orbaxs_defaults():
    found = ItemMetadata.from_bytes(b'{"tree_metadata":{}}')
    assert found == ItemMetadata(
        (), use_ocdbt=None, use_zarr3=False, store_array_data_equal_to_fill_value=False
    )


def changed(path, value=...):
    """The example with one field set, or removed."""
    document = json.loads(ITEM)
    node = document
    for step in path[:-1]:
        node = node[step]
    if value is ...:
        del node[path[-1]]
    else:
        node[path[-1]] = value
    return json.dumps(document).encode()


LEAF = ("tree_metadata", "('l', '0')")


@pytest.mark.parametrize(
    "data",
    [
        ITEM.replace("\"('l', '0')\"", '"any name"').encode(),
        changed((*LEAF, "key_metadata", 1, "key"), 0),
        changed((*LEAF, "value_metadata", "unit"), "K"),
        changed((*LEAF, "key_metadata", 0, "unit"), "K"),
        changed(("custom_metadata",)),
    ],
    ids=["map keys", "int key", "unknown value field", "unknown key field", "no custom metadata"],
)
def test_what_orbax_does_not_look_at_may_differ(data):
    found = ItemMetadata.from_bytes(data).entries
    assert found[0] == ENTRIES[0]
    assert set(found) == set(ENTRIES)


def test_unknown_fields_of_an_item_are_kept():
    data = changed(("value_metadata_tree",), "{}")
    assert ItemMetadata.from_bytes(data).extra == {"value_metadata_tree": "{}"}
    assert json.loads(ItemMetadata.from_bytes(data).to_bytes()) == json.loads(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(("tree_metadata",)), "m lacks the field 'tree_metadata'"),
        (changed((*LEAF, "key_metadata")), "m: ('l', '0') lacks the field 'key_metadata'"),
        (changed((*LEAF, "value_metadata")), "m: ('l', '0') lacks the field 'value_metadata'"),
        (
            changed((*LEAF, "value_metadata", "value_type")),
            "m: ('l', '0') lacks the field 'value_type'",
        ),
        (
            changed((*LEAF, "value_metadata", "skip_deserialize")),
            "m: ('l', '0') lacks the field 'skip_deserialize'",
        ),
        (
            changed((*LEAF, "value_metadata", "write_shape"), [2.5]),
            "m: ('l', '0'): 'write_shape' must hold int, found [2.5]",
        ),
        (
            changed((*LEAF, "key_metadata", 0, "key_type"), 3),
            "m: ('l', '0'): key_type must be 1 or 2, found 3",
        ),
        (
            changed((*LEAF, "key_metadata", 0, "key"), None),
            "m: ('l', '0'): 'key' must be str or int, found null",
        ),
        (changed(LEAF, []), "m: ('l', '0') must be a JSON object, found list []"),
        (changed(("use_zarr3",), "yes"), "m: 'use_zarr3' must be bool or null, found str 'yes'"),
    ],
)
def test_what_orbax_refuses_in_an_item_document_is_refused_with_the_leaf(data, message):
    with pytest.raises(MetadataError) as caught:
        ItemMetadata.from_bytes(data, source="m")
    assert str(caught.value) == message


# _sharding

NAMED = {
    "sharding_type": "NamedSharding",
    "shape": [2, 2],
    "axis_names": ["x", "y"],
    "axis_types": ["AxisType.Auto", "AxisType.Auto"],
    "partition_spec": ["x", "y"],
    "device_mesh": {"mesh": [[{"id": 0}, {"id": 1}], [{"id": 2}, {"id": 3}]]},
}
SINGLE = {"sharding_type": "SingleDeviceSharding", "device_str": "cpu:0"}
SHARDING = (
    r'{"dw==":"{\"sharding_type\": \"NamedSharding\", \"shape\": [2, 2], \"axis_names\": '
    r"[\"x\", \"y\"], \"axis_types\": [\"AxisType.Auto\", \"AxisType.Auto\"], "
    r"\"partition_spec\": [\"x\", \"y\"], \"device_mesh\": {\"mesh\": [[{\"id\": 0}, "
    r'{\"id\": 1}], [{\"id\": 2}, {\"id\": 3}]]}}",'
    r'"Yg==":"{\"sharding_type\": \"SingleDeviceSharding\", \"device_str\": \"cpu:0\"}"}'
)


def test_a_sharding_document_is_byte_for_byte_orbaxs():
    assert ShardingFile.from_bytes(SHARDING.encode()) == ShardingFile({"w": NAMED, "b": SINGLE})
    written = ShardingFile({"w": NAMED}).to_bytes().decode()
    assert written == SHARDING.partition(',"Yg')[0] + "}"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("b", "Yg=="),
        ("ab", "YWI="),
        ("abc", "YWJj"),
        ("\u00ff?>", "w78_Pg=="),
        ("~~~", "fn5-"),
        ("", ""),
    ],
)
def test_names_become_padded_url_safe_base64(name, key):
    written = json.loads(ShardingFile({name: SINGLE}).to_bytes())
    assert written == {key: json.dumps(SINGLE)}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("YQ", "{}"),
        ("w.0", "{}"),
        ("/w==", "{}"),
        ("YQ==", {"sharding_type": "A"}),
        ("YQ==", "{"),
        ("YQ==", "[]"),
        ("YQ==", None),
        (base64.urlsafe_b64encode(b"\xff").decode(), "{}"),
    ],
)
def test_an_entry_that_orbax_would_not_find_takes_no_other_with_it(key, value):
    data = json.dumps({"Yg==": json.dumps(SINGLE), key: value}).encode()
    assert ShardingFile.from_bytes(data) == ShardingFile({"b": SINGLE}, (key,))


def test_a_name_that_is_not_unicode_has_no_sharding_entry():
    with pytest.raises(MetadataError, match=r"the name '\\ud800' is not Unicode"):
        ShardingFile({"\ud800": SINGLE}).to_bytes()


# array_metadatas/process_N


def test_an_array_metadata_file_looks_like_orbaxs():
    entries = (
        ArrayMetadataEntry("w", (4, 2), (4, 2)),
        ArrayMetadataEntry("key", (2,), (2,), "threefry2x32"),
    )
    assert json.loads(ArrayMetadataFile(entries).to_bytes()) == {
        "array_metadatas": [
            {
                "array_metadata": {
                    "param_name": "w",
                    "write_shape": [4, 2],
                    "chunk_shape": [4, 2],
                    "ext_metadata": None,
                }
            },
            {
                "array_metadata": {
                    "param_name": "key",
                    "write_shape": [2],
                    "chunk_shape": [2],
                    "ext_metadata": {"random_key_impl": "threefry2x32"},
                }
            },
        ]
    }


ENTRY = {"param_name": "w", "write_shape": [4], "chunk_shape": [2], "ext_metadata": None}


@pytest.mark.parametrize(
    "entry", [ENTRY, {n: v for n, v in ENTRY.items() if n != "ext_metadata"}, ENTRY | {"zone": 1}]
)
def test_array_metadata_may_lack_and_add_what_orbax_does_not_need(entry):
    data = json.dumps({"array_metadatas": [{"array_metadata": entry}]}).encode()
    assert ArrayMetadataFile.from_bytes(data).entries == (ArrayMetadataEntry("w", (4,), (2,)),)
    assert ArrayMetadataFile.from_bytes(b"{}").entries == ()


@pytest.mark.parametrize("name", ["param_name", "write_shape", "chunk_shape"])
def test_array_metadata_that_orbax_refuses_is_refused(name):
    entry = {n: v for n, v in ENTRY.items() if n != name}
    data = json.dumps({"array_metadatas": [{"array_metadata": entry}]}).encode()
    with pytest.raises(MetadataError, match=f"^a lacks the field '{name}'$"):
        ArrayMetadataFile.from_bytes(data, source="a")
    with pytest.raises(MetadataError, match="^a lacks the field 'array_metadata'$"):
        ArrayMetadataFile.from_bytes(b'{"array_metadatas":[{}]}', source="a")


# _strings.json


@pytest.mark.parametrize(
    ("strings", "written"),
    [
        ({"s": "v"}, b'{"s":"v"}'),
        ({"s/t": "v"}, b'{"s":{"t":"v"}}'),
        ({"a~1b": "v"}, b'{"a/b":"v"}'),
        ({"a~0b": "v"}, b'{"a~b":"v"}'),
        ({"~01": "v"}, b'{"~1":"v"}'),
        ({"": "v"}, b'{"":"v"}'),
        ({"a/0": "v", "a/-": "w"}, b'{"a":{"-":"w","0":"v"}}'),
        ({"a.b": "v", "a//b": "w"}, b'{"a":{"":{"b":"w"}},"a.b":"v"}'),
    ],
)
def test_strings_lie_at_the_json_pointer_of_their_names(strings, written):
    assert StringsFile(strings).to_bytes() == written
    assert StringsFile.lookup(written, strings).strings == strings


NAMES = st.text("ab/.~", max_size=6).map(lambda t: t.replace("~", "~0"))


@given(st.dictionaries(NAMES, TEXT))
def test_strings_are_either_all_found_again_or_refused(strings):
    try:
        data = StringsFile(strings).to_bytes()
    except MetadataError:
        tops = [f"{name}/" for name in strings]
        assert any(a != b and b.startswith(a) for a in tops for b in tops)
        return
    assert StringsFile.lookup(data, strings).strings == strings


@pytest.mark.parametrize(
    ("strings", "message"),
    [
        ({"a~": "v"}, "'a~' is no JSON pointer: '~' must be '~0' or '~1'"),
        ({"a~2": "v"}, "'a~2' is no JSON pointer"),
        ({"s": "p", "s/t": "v"}, "the string 's/t' lies below another string"),
        ({"s/t": "v", "s": "p"}, "the string 's' lies where another string is, or above one"),
    ],
)
def test_strings_that_exclude_each_other_are_refused_where_orbax_loses_one(strings, message):
    with pytest.raises(MetadataError) as caught:
        StringsFile(strings).to_bytes()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("data", [b"{}", b'{"a":{"b":1}}', b'{"a":"b"}', b'{"a":{"b":{}}}', b"[]"])
def test_a_string_that_is_not_there_is_named(data):
    with pytest.raises(MetadataError, match=r"^s has no string for the leaf 'a/b'$"):
        StringsFile.lookup(data, ["a/b"], source="s")
