"""Loading a part of a checkpoint, or into a model with other names, in one argument."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts

import holdfast as hf

Moments = collections.namedtuple("Moments", ["mu", "nu"])


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Block:
    kernel: object
    bias: object


def state():
    return {
        "params": {"dense": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}, "head": np.arange(4)},
        "opt": (Moments({"dense": np.full(3, 7.0)}, None), {}, 5),
        "layers": [{"w": np.arange(2)}, {"w": np.arange(2) + 10}],
        "step": 3,
    }


def shown(tree):
    return jax.tree.map(lambda leaf: leaf.tolist() if hasattr(leaf, "tolist") else leaf, tree)


@pytest.fixture
def saved(place):
    hf.save(f"{place}/saved", state())
    return f"{place}/saved"


def test_one_glob_loads_the_parameters_only(saved):
    found = hf.load(saved, select="params/**")
    assert shown(found) == shown({"params": state()["params"]})


@pytest.mark.parametrize(
    ("select", "there"),
    [
        ("**", {"params", "opt", "layers", "step"}),
        ("*", {"step"}),
        ("**/kernel", {"params"}),
        ("params/*", {"params"}),
        (["step", "params/dense/[kb]*"], {"step", "params"}),
        ("opt/0/mu/*", {"opt"}),
        ("opt/1", {"opt"}),
        ("**/**/head/**", {"params"}),
    ],
)
def test_a_glob_keeps_the_leaves_that_it_matches_whole(saved, select, there):
    assert set(hf.load(saved, select=select)) == there


def test_a_star_stays_within_a_segment_and_two_stars_take_any_number(saved):
    assert shown(hf.load(saved, select="params/*")) == {"params": {"head": [0, 1, 2, 3]}}
    assert set(hf.load(saved, select="params/**/bias")["params"]) == {"dense"}
    assert shown(hf.load(saved, select="params/**/head")) == {"params": {"head": [0, 1, 2, 3]}}


def test_containers_that_are_whole_stay_what_they_are_and_others_become_dicts(saved):
    whole = hf.load(saved, select=["opt/**", "layers/**"])
    assert type(whole["opt"]) is tuple
    assert type(whole["opt"][0]) is Moments
    assert whole["opt"][1] == {}
    assert whole["opt"][0].nu is None
    assert type(whole["layers"]) is list
    part = hf.load(saved, select=["opt/0/mu/**", "layers/1/w"])
    assert shown(part) == {"opt": {0: {"mu": {"dense": [7.0] * 3}}}, "layers": {1: {"w": [10, 11]}}}


def test_a_target_is_matched_with_what_is_selected(saved):
    target = {"params": {"head": jax.ShapeDtypeStruct((4,), np.float32)}}
    found = hf.load(saved, target, select="params/head")
    assert found["params"]["head"].dtype == np.float32
    layer = hf.load(saved, {"layers": {1: {"w": np.zeros(2, int)}}}, select="layers/1/**")
    assert layer["layers"][1]["w"].tolist() == [10, 11]
    with pytest.raises(hf.errors.TreeMismatchError, match="not in the checkpoint"):
        hf.load(saved, {"params": {"head": np.zeros(4, int)}, "step": 0}, select="params/head")


def test_a_pattern_renames_whole_paths_with_back_references(saved):
    found = hf.load(saved, select="params/**", rename={r"params/(.*)": r"model/\1"})
    assert shown(found) == {"model": shown(state()["params"])}
    stripped = hf.load(saved, select="params/**", rename={r"params/(.*)": r"\1"})
    assert shown(stripped) == shown(state()["params"])
    assert set(hf.load(saved, rename={"step": "epoch"})) == {"params", "opt", "layers", "epoch"}
    with pytest.raises(ValueError, match="matches no whole path"):
        hf.load(saved, rename={"params": "model"})


def test_the_first_pattern_that_matches_wins_and_every_one_must(saved):
    rename = {r"params/dense/(.*)": r"d/\1", r"params/(.*)": r"p/\1"}
    assert set(hf.load(saved, select="params/**", rename=rename)) == {"d", "p"}
    with pytest.raises(ValueError, match="no earlier pattern"):
        hf.load(saved, select="params/**", rename=dict(reversed(rename.items())))


def test_a_function_renames_too_and_what_moves_as_a_whole_stays_what_it_is(saved):
    found = hf.load(saved, rename=lambda path: path.replace("opt/0/", "moments/"))
    assert type(found["moments"]) is Moments
    assert found["moments"].mu["dense"].tolist() == [7.0] * 3
    assert set(found["opt"]) == {1, 2}
    moved = hf.load(saved, rename={r"(opt|layers)/(.*)": r"old/\1/\2"})
    assert type(moved["old"]["opt"][0]) is Moments
    assert type(moved["old"]["layers"]) is list
    with pytest.raises(ValueError, match="gave 7 for"):
        hf.load(saved, rename=lambda _: 7)


def test_numbered_names_become_a_list_where_the_target_is_one(place):
    hf.save(f"{place}/flat", {f"layer_{n}": {"w": np.full(2, n)} for n in range(12)})
    rename = {r"layer_(\d+)/(.*)": r"layers/\1/\2"}
    target = {"layers": [{"w": np.zeros(2, int)} for _ in range(12)]}
    found = hf.load(f"{place}/flat", target, rename=rename)
    assert [layer["w"][0] for layer in found["layers"]] == list(range(12))
    assert list(hf.load(f"{place}/flat", rename=rename)["layers"]) == [str(n) for n in range(12)]


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        ({r"params/dense/.*": "x"}, "would both be 'x'"),
        ({r"params/head": "params/dense"}, "would lie inside"),
        ({r"params/head": "step"}, "'params/head' and 'step' would both be 'step'"),
        ({r"step": ""}, "an empty path"),
    ],
)
def test_leaves_that_would_collide_are_refused(saved, rename, message):
    with pytest.raises(hf.errors.SelectionError, match=message):
        hf.load(saved, rename=rename)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"select": "parms/**"}, "'params/"),
        ({"select": ["params/**", "opt/9"]}, "'opt/9' matches nothing; there are 'opt/"),
        ({"rename": {"param/(.*)": "x"}}, "'params/"),
    ],
)
def test_what_matches_nothing_is_an_error_that_lists_paths_alike(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        hf.load(saved, **arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"select": 3},
        {"select": []},
        {"select": {"params": "x"}},
        {"rename": "params"},
        {"rename": {}},
        {"rename": {"(": "x"}},
        {"rename": {"a": r"\1"}},
        {"rename": {"a": 1}},
    ],
)
def test_what_is_no_glob_or_pattern_is_refused_before_anything_is_read(arguments):
    with pytest.raises(hf.errors.SelectionError, match="accepted is a"):
        hf.load("memory://nowhere/at/all", **arguments)


def test_keys_of_any_kind_have_paths_of_their_own(place):
    tree = {
        "a/b": 1,
        "a": {"b": 2, "%2F": 3},
        "odd": collections.OrderedDict([(1, 4), ("1", 5), (True, 4)]),
        "pair": {(1, "x"): 6, (1, "y/z"): 7},
        "block": Block(8, 9),
        "": {"": 10},
    }
    hf.save(f"{place}/keys", tree)
    paths = []
    hf.load(f"{place}/keys", rename=lambda path: paths.append(path) or path)
    assert set(paths) == {
        *("a%2Fb", "a/b", "a/%252F", "odd/%int:1", "odd/1", "/"),
        *("pair/(1, 'x')", "pair/(1, 'y%2Fz')", "block/kernel", "block/bias"),
    }
    values = {path: jax.tree.leaves(hf.load(f"{place}/keys", select=path)) for path in paths}
    assert values["a%2Fb"] == [1]
    assert values["a/b"] == [2]
    assert values["odd/%int:1"] == [4]
    assert values["odd/1"] == [5]
    assert values["/"] == [10]
    assert all(len(found) == 1 for found in values.values())
    assert hf.load(f"{place}/keys", select="pair/*y*") == {"pair": {(1, "y/z"): 7}}
    renamed = hf.load(f"{place}/keys", select="a%2Fb", rename={"a%2Fb": "c%2Fd/e%25"})
    assert renamed == {"c/d": {"e%": 1}}


def test_leaves_that_are_not_selected_are_not_read(tmp_path):
    large = {"params": jnp.ones((256, 1024)), "opt": jnp.ones((2048, 1024)), "n": 1}
    hf.save(tmp_path / "large", large)

    def bytes_read():
        found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(value["value"] for metric in found for value in metric["values"])

    before = bytes_read()
    hf.load(tmp_path / "large", select="params")
    read = bytes_read() - before
    assert large["params"].nbytes <= read <= 1.1 * large["params"].nbytes


def test_every_way_to_load_takes_them(place):
    with hf.training.Checkpointer(f"{place}/run") as run:
        run.save(1, state())
        assert set(run.load(select="step", rename={"step": "epoch"})) == {"epoch"}
        assert hf.load_async(f"{place}/run/1", select="step").result() == {"step": 3}
    restore = hf.args.PyTreeRestore(select="layers/0/*", rename={r"layers/0/(.*)": r"\1"})
    found = hf.load_checkpointables(f"{place}/run/1", {"state": restore})
    assert shown(found["state"]) == {"w": [0, 1]}
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/v0", state()["params"])
        args = hf.args.StandardRestore({"h": np.zeros(4, int)}, select="head", rename={"head": "h"})
        assert checkpointer.restore(f"{place}/v0", args=args)["h"].tolist() == [0, 1, 2, 3]


def test_a_single_leaf_has_the_empty_path():
    hf.save("memory://select/leaf", np.arange(2), overwrite=True)
    assert hf.load("memory://select/leaf", select="").tolist() == [0, 1]
    found = hf.load("memory://select/leaf", rename={"": "w"})
    assert found["w"].tolist() == [0, 1]
