"""Bad input gets a clear error before anything is created or deleted."""

import enum
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast_checkpointer as hc
from holdfast_storage import errors


class Colour(enum.IntEnum):
    RED = 1


def nothing_there(tmp_path):
    return list(tmp_path.rglob("*")) == []


def test_an_unknown_scheme_names_the_command_to_install_it(monkeypatch, tmp_path):
    # As in an environment without that backend; the workspace has them all.
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(errors.UnknownSchemeError, match="pip install holdfast-s3"):
        hc.save("s3://bucket/run", {"a": 1})
    with pytest.raises(ValueError, match="no storage backend for nowhere://"):
        hc.load("nowhere://bucket/run")


def test_a_relative_path_with_an_empty_root_is_refused(monkeypatch):
    monkeypatch.setenv("HOLDFAST_ROOT", "")
    with pytest.raises(errors.InvalidURLError, match="HOLDFAST_ROOT is empty"):
        hc.save("runs/x", {"a": 1})


def test_relative_paths_resolve_when_they_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hc.save("here", {"a": 1})
    monkeypatch.setenv("HOLDFAST_ROOT", str(tmp_path / "root"))
    hc.save("there", {"a": 2})
    assert hc.load(tmp_path / "here") == {"a": 1}
    assert hc.load(tmp_path / "root" / "there") == {"a": 2}


def test_what_exists_is_refused_and_stays(place):
    hc.save(place, {"a": 1})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        hc.save(place, {"a": 2})
    assert hc.load(place) == {"a": 1}


def test_what_is_no_checkpoint_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("words")
    (tmp_path / "file").write_text("words")
    (tmp_path / "empty").mkdir()
    for name in ("thesis", "file", "empty"):
        with pytest.raises(FileExistsError):
            hc.save(tmp_path / name, {"a": 1}, overwrite=True)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "words"
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "thesis"]


BAD_LEAVES = {
    "object": (object(), "builtins.object"),
    "object array": (np.array([None]), "dtype object"),
    "text array": (np.array(["a"]), "dtype <U1"),
    "dates": (np.array(["2020-01-01"], "M8[D]"), "datetime64"),
    "enum": (Colour.RED, "plain int"),
    "abstract": (jax.ShapeDtypeStruct((2,), np.float32), "has no values"),
    "placeholder": (..., "for loading"),
    "masked": (np.ma.masked_array([1, 2], [0, 1]), "would lose"),
    "set": ({1, 2}, "builtins.set"),
    "function": (len, "is no leaf"),
}


@pytest.mark.parametrize(("leaf", "said"), BAD_LEAVES.values(), ids=BAD_LEAVES)
def test_a_leaf_that_cannot_be_saved_is_named(tmp_path, leaf, said):
    with pytest.raises(hc.errors.UnsupportedLeafError) as caught:
        hc.save(tmp_path / "c", {"fine": 1, "layer": [{"bad": leaf}]})
    assert "['layer'][0]['bad']" in str(caught.value)
    assert said in str(caught.value)
    assert nothing_there(tmp_path)


def test_all_bad_leaves_are_listed(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)\['a'\].*\['b'\]"):
        hc.save(tmp_path / "c", {"a": object(), "b": object(), "c": 1})


def test_a_deleted_array_is_named(tmp_path):
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(ValueError, match="deleted or donated"):
        hc.save(tmp_path / "c", {"w": array})


def test_a_tracer_is_refused(tmp_path):
    @jax.jit
    def step(x):
        hc.save(tmp_path / "c", {"x": x})
        return x

    with pytest.raises(ValueError, match="tracer"):
        step(jnp.ones(2))
    assert nothing_there(tmp_path)


def test_keys_that_cannot_be_stored_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"\['outer'\].*Colour"):
        hc.save(tmp_path / "c", {"outer": {Colour.RED: 1}})
    with pytest.raises(ValueError, match=r"\['mixed'\]"):
        hc.save(tmp_path / "c", {"mixed": {1: 1, "a": 2}})
    assert nothing_there(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "metrics",
        "AUTO",
        "_private",
        ".hidden",
        "orbax.checkpoint",
        "\udc80",
        5,
    ],
)
def test_a_bad_item_name_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="name|reserved"):
        hc.save(tmp_path / "c", {"a": 1}, checkpointable_name=name)
    assert nothing_there(tmp_path)


@pytest.mark.parametrize("name", [".hidden", "x.orbax-checkpoint-tmp"])
def test_a_checkpoint_cannot_have_a_name_that_marks_unfinished_work(tmp_path, name):
    with pytest.raises(ValueError, match="unfinished"):
        hc.save(tmp_path / name, {"a": 1})
    assert nothing_there(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ([1], "JSON object"),
        ({"a": {1: 2}}, r"custom_metadata\['a'\] has the key 1"),
        ({"a": [object()]}, r"custom_metadata\['a'\]\[0\]"),
        ({"a": float("nan")}, "finite"),
        ({"a": np.float32(1)}, "float32"),
    ],
)
def test_custom_metadata_that_is_not_json_is_refused(tmp_path, metadata, said):
    with pytest.raises(ValueError, match=said):
        hc.save(tmp_path / "c", {"a": 1}, custom_metadata=metadata)
    assert nothing_there(tmp_path)


def test_a_failed_overwrite_leaves_the_old_checkpoint(place):
    hc.save(place, {"a": 1})
    with pytest.raises(ValueError, match="object"):
        hc.save(place, {"a": object()}, overwrite=True)
    with pytest.raises(ValueError, match="custom_metadata"):
        hc.save(place, {"a": 2}, overwrite=True, custom_metadata={"a": object()})
    assert hc.load(place) == {"a": 1}


def test_a_missing_checkpoint_is_a_file_not_found(place):
    for call in (hc.load, hc.metadata, hc.verify, hc.delete):
        with pytest.raises(FileNotFoundError, match="no checkpoint is here"):
            call(place)
    assert not hc.is_checkpoint(place)
    assert hc.delete(place, missing_ok=True) is False


def test_one_level_too_deep_or_too_shallow_is_said(place):
    hc.save(f"{place}/run/5", {"a": 1})
    with pytest.raises(FileNotFoundError, match="inside the checkpoint"):
        hc.load(f"{place}/run/5/state")
    with pytest.raises(FileNotFoundError, match=r"folder of checkpoints.*5"):
        hc.load(f"{place}/run")
    assert not hc.is_checkpoint(f"{place}/run")
    with pytest.raises(FileNotFoundError):
        hc.delete(f"{place}/run")
    assert hc.load(f"{place}/run/5") == {"a": 1}


def test_a_save_that_was_killed_is_never_committed(tmp_path):
    script = f"""
import os, numpy as np, holdfast_checkpointer as hc
from holdfast_checkpointer.handlers import pytree
pytree.StagedPyTree.finish = lambda *a: os.kill(os.getpid(), 9)
hc.save({str(tmp_path / "c")!r}, {{"a": np.ones(3)}})
"""
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == -9
    with pytest.raises(FileNotFoundError, match="never committed"):
        hc.load(tmp_path / "c")
    hc.save(tmp_path / "c", {"a": 1})
    assert hc.load(tmp_path / "c") == {"a": 1}


def test_a_newer_format_is_refused_and_left_alone(tmp_path):
    hc.save(tmp_path / "c", {"a": 1})
    record = tmp_path / "c" / "_COMMIT.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "format_version": 99}))
    before = record.read_bytes()
    for call in (hc.load, hc.is_checkpoint, hc.delete, lambda p: hc.save(p, 1, overwrite=True)):
        with pytest.raises(errors.RecordUnreadableError, match="format version 99"):
            call(tmp_path / "c")
    assert record.read_bytes() == before


def test_a_closed_checkpointer_refuses(tmp_path):
    checkpointer = hc.Checkpointer(hc.StandardCheckpointHandler())
    checkpointer.close()
    with pytest.raises(ValueError, match="closed"):
        checkpointer.save(tmp_path / "c", {"a": 1})


def test_none_as_a_whole_tree_is_refused(tmp_path):
    with pytest.raises(ValueError, match="None, which holds nothing to save"):
        hc.save(tmp_path / "c", None)
    assert nothing_there(tmp_path)


def test_arguments_of_another_handler_are_refused(tmp_path):
    with hc.Checkpointer(hc.StandardCheckpointHandler()) as checkpointer:
        with pytest.raises(TypeError, match="takes StandardSave, got JsonSave"):
            checkpointer.save(tmp_path / "c", args=hc.args.JsonSave({}))
        with pytest.raises(ValueError, match="None"):
            checkpointer.save(tmp_path / "c", args=hc.args.StandardSave(None))
    with pytest.raises(TypeError, match="CheckpointHandler"):
        hc.Checkpointer("standard")
    assert nothing_there(tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"compression": "gzip"}, "zstd"),
        ({"chunk_bytes": 0}, "chunk_bytes"),
        ({"small_leaf_bytes": -1}, "small_leaf_bytes"),
        ({"bytes_in_flight": 0}, "bytes_in_flight"),
    ],
)
def test_bad_options_are_refused_where_they_are_made(options, said):
    with pytest.raises(ValueError, match=said):
        hc.options.ArraySaveOptions(**options)


def test_a_class_that_gives_two_children_one_key_is_refused_for_one_would_be_lost(place):
    class Twice:
        pass

    def flatten(_):
        return ((jax.tree_util.DictKey("x"), 1), (jax.tree_util.GetAttrKey("x"), 2)), None

    jax.tree_util.register_pytree_with_keys(Twice, flatten, lambda *_: Twice())
    with pytest.raises(ValueError, match=r"\['t'\]: two children of a Twice have the same key"):
        hc.save(f"{place}/twice", {"t": Twice()})
