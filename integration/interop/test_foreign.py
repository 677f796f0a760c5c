"""Handlers of Orbax's, and of users who wrote and registered theirs with Orbax."""

import concurrent.futures
import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

import holdfast as hf


class Notes(ocp.CheckpointHandler):
    def save(self, directory, args):
        (directory / "notes.json").write_text(json.dumps(args.item))

    def restore(self, directory, args):
        return json.loads((directory / "notes.json").read_text())

    def metadata(self, directory):
        return len(list(directory.glob("notes.json")))


@ocp.args.register_with_handler(Notes, for_save=True)
@dataclasses.dataclass
class NotesSave(ocp.args.CheckpointArgs):
    item: object


@ocp.args.register_with_handler(Notes, for_restore=True)
@dataclasses.dataclass
class NotesRestore(ocp.args.CheckpointArgs):
    pass


class LateNotes(ocp.AsyncCheckpointHandler):
    async def async_save(self, directory, args):
        text = json.dumps(args.item)
        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit((directory / "late.json").write_text, text)
        pool.shutdown(wait=False)
        return [future]

    def save(self, directory, args):
        raise AssertionError("the asynchronous one is asked for")

    def restore(self, directory, args=None):
        return json.loads((directory / "late.json").read_text())


@ocp.args.register_with_handler(LateNotes, for_save=True, for_restore=True)
class LateArgs(ocp.args.CheckpointArgs):
    def __init__(self, item=None):
        self.item = item


TREE = {"w": np.arange(6.0).reshape(2, 3), "b": jnp.ones(4)}


@pytest.fixture(params=["memory", "local"])
def place(request, tmp_path):
    if request.param == "memory":
        return f"memory://{tmp_path.name}/{request.node.name}"
    return str(tmp_path / "folder")


def test_what_is_registered_with_orbax_is_found_and_runs(place):
    assert hf.args.get_registered_handler_cls(NotesSave) is Notes
    assert hf.args.get_registered_args_cls(Notes) == (NotesSave, NotesRestore)
    assert hf.args.has_registered_args(LateNotes)
    with hf.Checkpointer(Notes()) as checkpointer:
        checkpointer.save(f"{place}/x", args=NotesSave([1]))
        assert checkpointer.restore(f"{place}/x", args=NotesRestore()) == [1]
        assert checkpointer.restore(f"{place}/x") == [1]
    with hf.AsyncCheckpointer(LateNotes()) as checkpointer:
        checkpointer.save(f"{place}/y", args=LateArgs([2]))
        assert checkpointer.restore(f"{place}/y") == [2]


def test_items_of_both_libraries_are_one_checkpoint(place):
    items = hf.args.Composite(
        notes=NotesSave({"a": 1}),
        late=LateArgs([3]),
        state=hf.args.StandardSave(TREE),
        theirs=ocp.args.StandardSave(TREE),
        config=hf.args.JsonSave(7),
    )
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/x", args=items)
    found = hf.Checkpointer(hf.CompositeCheckpointHandler()).restore(f"{place}/x")
    assert (found.notes, found.late, found.config) == ({"a": 1}, [3], 7)
    for tree in (found.state, found.theirs):
        assert all(np.array_equal(tree[name], TREE[name]) for name in TREE)
    assert hf.verify(f"{place}/x").ok


def test_orbaxs_composite_arguments_are_taken_too(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/x", args=ocp.args.Composite(notes=NotesSave([1])))
        found = checkpointer.restore(f"{place}/x", ocp.args.Composite(notes=NotesRestore()))
        assert dict(found) == {"notes": [1]}


def test_orbax_restores_what_its_handlers_saved_through_holdfast(tmp_path):
    items = hf.args.Composite(notes=NotesSave({"a": 1}), state=ocp.args.StandardSave(TREE))
    hf.Checkpointer(hf.CompositeCheckpointHandler()).save(tmp_path / "x", args=items)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(tmp_path / "x")
        assert found.notes == {"a": 1}
        assert np.array_equal(found.state["w"], TREE["w"])
        checkpointer.save(tmp_path / "y", args=ocp.args.Composite(notes=NotesSave([5])))
    assert hf.Checkpointer(hf.CompositeCheckpointHandler()).restore(tmp_path / "y").notes == [5]


@pytest.mark.parametrize("checkpointer", [hf.Checkpointer, hf.AsyncCheckpointer])
def test_orbaxs_own_handlers_run_in_holdfasts_checkpointers(checkpointer, place):
    with checkpointer(ocp.StandardCheckpointHandler()) as made:
        made.save(f"{place}/x", args=ocp.args.StandardSave(TREE))
        found = made.restore(f"{place}/x", args=ocp.args.StandardRestore(TREE))
        assert np.array_equal(found["w"], TREE["w"])
    ours = hf.Checkpointer(hf.StandardCheckpointHandler()).restore(f"{place}/x")
    assert np.array_equal(ours["b"], TREE["b"])


def test_handlers_called_directly_exchange_folders(tmp_path):
    ours, theirs = hf.StandardCheckpointHandler(), ocp.StandardCheckpointHandler()
    ours.save(tmp_path / "ours", args=hf.args.StandardSave(TREE))
    ours.finalize(tmp_path / "ours")
    found = theirs.restore(ocp.path.step.epath.Path(tmp_path / "ours"))
    assert np.array_equal(found["w"], TREE["w"])
    folder = ocp.path.step.epath.Path(tmp_path / "theirs")
    folder.mkdir()
    theirs.save(folder, args=ocp.args.StandardSave(TREE))
    theirs.finalize(folder)
    back = ours.restore(folder)
    assert np.array_equal(back["w"], TREE["w"])
    assert np.array_equal(back["b"], TREE["b"])
    hf.JsonCheckpointHandler().save(tmp_path / "json", {"n": 1})
    json_folder = ocp.path.step.epath.Path(tmp_path / "json")
    assert ocp.JsonCheckpointHandler().restore(json_folder) == {"n": 1}


def test_holdfast_never_imports_orbax():
    script = (
        "import sys, holdfast as hf\n"
        "c = hf.Checkpointer(hf.CompositeCheckpointHandler())\n"
        "c.save('memory://a/b', args=hf.args.Composite(x=hf.args.JsonSave(1)))\n"
        "c.restore('memory://a/b')\n"
        "assert not any(name.startswith('orbax') for name in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_arguments_of_the_wrong_library_are_told_apart(place):
    with pytest.raises(TypeError, match=r"holdfast_checkpointer\.args\.StandardSave, got orbax"):
        hf.Checkpointer(hf.StandardCheckpointHandler()).save(
            f"{place}/x", args=ocp.args.StandardSave(TREE)
        )
