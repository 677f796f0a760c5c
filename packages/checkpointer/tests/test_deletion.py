"""Deleting checkpoints and single items of them."""

import json

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage.commit import rewrite_checkpoint

ITEMS = {
    "config": hf.args.JsonSave({"layers": 3}),
    "state": {"w": np.arange(9.0)},
    "zero": {"n": 1},
}


def test_an_item_is_deleted_and_the_others_stay_as_they_were(place):
    hf.save_checkpointables(place, ITEMS, custom_metadata={"run": 7})
    assert hf.delete(place, checkpointable_name="zero") is True
    found = hf.load_checkpointables(place)
    assert set(found) == {"config", "state"}
    np.testing.assert_array_equal(found["state"]["w"], np.arange(9.0))
    assert hf.metadata(place).custom_metadata == {"run": 7}
    assert hf.verify(place).ok
    assert hf.delete_async(place, checkpointable_name="config").result() is True
    assert set(hf.load_checkpointables(place)) == {"state"}


def test_the_handlers_that_are_recorded_lose_the_item(tmp_path):
    hf.save_checkpointables(tmp_path / "c", ITEMS)
    hf.delete(tmp_path / "c", checkpointable_name="config")
    step = json.loads((tmp_path / "c" / "_CHECKPOINT_METADATA").read_text())
    assert set(step["item_handlers"]) == {"state", "zero"}
    assert (tmp_path / "c" / "orbax.checkpoint").exists()
    assert not (tmp_path / "c" / "config").exists()


def test_the_last_item_is_not_deleted(place):
    hf.save(place, {"a": 1})
    with pytest.raises(ValueError, match="'state' is the only one.*delete the checkpoint"):
        hf.delete(place, checkpointable_name="state")
    assert hf.load(place) == {"a": 1}


def test_what_is_not_there_is_an_error_unless_it_may_be_missing(place):
    with pytest.raises(FileNotFoundError, match="no checkpoint is here"):
        hf.delete(place, checkpointable_name="a")
    assert hf.delete(place, checkpointable_name="a", missing_ok=True) is False
    hf.save_checkpointables(place, ITEMS)
    for kind in (FileNotFoundError, KeyError, hf.errors.ItemNotFoundError):
        with pytest.raises(kind, match="has no item 'absent'; it has items: 'config', 'state'"):
            hf.delete(place, checkpointable_name="absent")
    assert hf.delete(place, checkpointable_name="absent", missing_ok=True) is False
    assert set(hf.load_checkpointables(place)) == set(ITEMS)


@pytest.mark.parametrize("name", ["", "..", "a/b", "metrics", "AUTO", "_CHECKPOINT_METADATA", 5])
def test_a_name_that_can_be_no_item_is_refused(place, name):
    hf.save_checkpointables(place, ITEMS)
    with pytest.raises(ValueError, match="name|reserved"):
        hf.delete(place, checkpointable_name=name)
    assert set(hf.load_checkpointables(place)) == set(ITEMS)


def test_the_one_item_of_a_flat_checkpoint_has_no_name(place):
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(place, {"a": 1})
    with pytest.raises(KeyError, match="one unnamed item"):
        hf.delete(place, checkpointable_name="state")


def test_a_damaged_checkpoint_is_not_rewritten(tmp_path):
    hf.save_checkpointables(tmp_path / "c", ITEMS)
    document = tmp_path / "c" / "state" / "_TREE.json"
    data = bytearray(document.read_bytes())
    data[5] ^= 1
    document.write_bytes(data)
    with pytest.raises(hf.errors.DamagedCheckpointError):
        hf.delete(tmp_path / "c", checkpointable_name="zero")
    assert (tmp_path / "c" / "zero").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_that_was_replaced_meanwhile_is_not_touched(place, monkeypatch):
    hf.save_checkpointables(place, ITEMS)

    async def late(backend, area, **kwargs):
        await hf.save_async(place, {"new": 1}, overwrite=True)
        return await rewrite_checkpoint(backend, area, **kwargs)

    monkeypatch.setattr("holdfast_checkpointer.engine.removal.rewrite_checkpoint", late)
    with pytest.raises(hf.errors.CommitConflictError, match="committed here meanwhile"):
        hf.delete(place, checkpointable_name="zero")
    assert hf.load(place) == {"new": 1}


def test_one_item_of_several_is_described(place):
    hf.save_checkpointables(place, ITEMS)
    assert hf.metadata(place).metadata["w"].shape == (9,)
    assert hf.metadata(place, "zero").metadata == {"n": 1}
    assert hf.metadata(place, checkpointable_name="state").items.keys() == ITEMS.keys()
    with pytest.raises(hf.errors.ItemNotFoundError, match="'config' of .* is no PyTree"):
        hf.metadata(place, "config")
    with pytest.raises(hf.errors.ItemNotFoundError, match="no item 'absent'"):
        hf.metadata(place, "absent")
    with pytest.raises(hf.errors.InvalidLayoutError, match="the checkpoint itself"):
        hf.metadata(place, None)
    with pytest.raises(ValueError, match="reserved"):
        hf.metadata(place, "metrics")


def test_the_unnamed_item_is_described_and_loaded_as_none(place):
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(place, {"a": 1})
    assert hf.metadata(place, None).metadata == {"a": 1}
    assert hf.load(place, checkpointable_name=None) == {"a": 1}
    with pytest.raises(KeyError, match="one unnamed item"):
        hf.load(place, checkpointable_name="state")


@pytest.mark.parametrize("manifest", [None, b"damage"])
def test_a_damaged_checkpoint_is_deleted(tmp_path, manifest):
    hf.save(tmp_path / "c", {"a": 1})
    (tmp_path / "c" / "_MANIFEST.jsonl").unlink()
    if manifest is not None:
        (tmp_path / "c" / "_MANIFEST.jsonl").write_bytes(manifest)
    assert hf.delete(tmp_path / "c") is True
    assert list(tmp_path.iterdir()) == []


def as_orbax_writes(folder, *marks):
    (folder / "state" / "d").mkdir(parents=True)
    for name in ("_METADATA", "manifest.ocdbt", "d/1"):
        (folder / "state" / name).write_text("{}")
    for name in marks:
        (folder / name).write_text("{}")


def test_a_checkpoint_of_orbax_is_deleted_whole(tmp_path):
    as_orbax_writes(tmp_path / "c", "_CHECKPOINT_METADATA", "commit_success.txt")
    assert hf.delete(tmp_path / "c") is True
    assert list(tmp_path.iterdir()) == []
    assert hf.delete(tmp_path / "c", missing_ok=True) is False


@pytest.mark.parametrize("marks", [["_CHECKPOINT_METADATA"], []])
def test_an_item_of_orbax_is_no_checkpoint_to_delete(tmp_path, marks):
    as_orbax_writes(tmp_path / "c", *marks)
    with pytest.raises(FileNotFoundError, match="one level up"):
        hf.delete(tmp_path / "c" / "state", missing_ok=True)
    assert (tmp_path / "c" / "state" / "d" / "1").exists()


def test_a_folder_of_checkpoints_is_not_deleted_though_it_has_a_mark_of_orbax(tmp_path):
    as_orbax_writes(tmp_path / "run" / "7", "_CHECKPOINT_METADATA")
    hf.save(tmp_path / "run" / "8", {"a": 1})
    (tmp_path / "run" / "_METADATA").write_text("{}")
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "_CHECKPOINT_METADATA").write_text("{}")
    with pytest.raises(hf.errors.InvalidLayoutError, match="other checkpoints are in this one"):
        hf.delete(tmp_path / "run")
    assert (tmp_path / "run" / "7" / "state" / "d" / "1").exists()
    assert hf.load(tmp_path / "run" / "8") == {"a": 1}


def test_what_orbax_has_not_finished_is_not_deleted(tmp_path):
    as_orbax_writes(tmp_path / "c.orbax-checkpoint-tmp", "_CHECKPOINT_METADATA")
    with pytest.raises(FileNotFoundError, match="temporary directory of an Orbax save"):
        hf.delete(tmp_path / "c.orbax-checkpoint-tmp")
    assert (tmp_path / "c.orbax-checkpoint-tmp" / "state" / "d" / "1").exists()
