"""What Orbax leaves out of its files, or writes beside the state, holdfast takes as it is."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp0
import pytest
from orbax.checkpoint import v1 as ocp

import holdfast as hf
from integration.interop.orbax_two_processes import HOST
from integration.interop.orbax_writers import StorageOptions, v0, v1
from integration.interop.trees import CASES, blank, differences


@pytest.fixture
def path(tmp_path):
    return tmp_path / "orbax"


@pytest.fixture
def core():
    return CASES["core"]().tree


def test_numpy_numbers_of_v0_come_back_as_numbers(path):
    tree = {"f": np.float32(0.1), "i": np.int8(-3), "c": np.uint16(9)}
    v0()(path, tree)
    assert differences(hf.load(path), {k: v.item() for k, v in tree.items()}) == []
    assert differences(hf.load(path, tree), tree) == []


@pytest.mark.parametrize("write", [v1, v0], ids=["v1", "v0"])
def test_arrays_that_orbax_cast_come_back_in_the_dtype_it_stored(path, write):
    tree = {"w": jnp.asarray([1.0, 2.5, 1e-3]), "n": jnp.arange(3)}
    if write is v1:
        v1(storage_options=StorageOptions(dtype=jnp.bfloat16))(path, tree)
    else:
        v0(save_args=ocp0.SaveArgs(dtype=np.dtype(jnp.bfloat16)))(path, tree)
    stored = tree["w"].astype(jnp.bfloat16)
    assert differences(hf.load(path)["w"], stored) == []
    wanted = {"w": tree["w"], "n": tree["n"].astype(jnp.float32)}
    found = hf.load(path, blank(wanted))
    assert differences(found["w"], stored.astype(jnp.float32)) == []


def test_without_a_sharding_file_arrays_go_to_the_default_device(path):
    tree = CASES["sharded"]().tree
    v1(enable_write_sharding_file=False)(path, tree)
    default = jax.tree.map(lambda leaf: jax.device_put(leaf, jax.devices()[0]), tree)
    assert differences(hf.load(path), default) == []
    assert differences(hf.load(path, blank(tree)), tree) == []


def test_without_array_metadata_keys_are_the_numbers_they_are_made_of(path):
    tree = {"key": jax.random.key(3), "w": jnp.ones((300,))}
    v1(array_metadata_store=None)(path, tree)
    plain = {"key": jax.random.key_data(tree["key"]), "w": tree["w"]}
    assert differences(hf.load(path), plain) == []


def test_other_items_stand_beside_the_state(path, core):
    ocp.save_checkpointables(path, {"a": {"w": np.ones(3)}, "state": core, "config": {"x": 1}})
    assert differences(hf.load(path), core) == []
    found = hf.load(path, checkpointable_name="a")
    assert differences(found, {"w": np.ones(3)}) == []
    with pytest.raises(KeyError, match="'b'.*'a', 'config', 'state'"):
        hf.load(path, checkpointable_name="b")


def test_an_item_is_loaded_by_any_name_that_orbax_takes(path):
    items = {"_hidden": {"a": 1}, ".dot": {"b": 2}}
    ocp.save_checkpointables(path, items)
    assert hf.load_checkpointables(path) == items
    assert hf.load_checkpointables(path, {".dot": None}) == {".dot": {"b": 2}}
    assert hf.load(path, checkpointable_name="_hidden") == {"a": 1}
    assert hf.metadata(path, "_hidden").metadata["a"].shape == ()


def test_items_without_a_step_document_are_a_checkpoint_as_in_old_versions(path, core):
    with ocp0.Checkpointer(ocp0.CompositeCheckpointHandler()) as old:
        args = {"state": ocp0.args.StandardSave(core), "config": ocp0.args.JsonSave({"n": 1})}
        old.save(path, ocp0.args.Composite(**args))
    (path / "_CHECKPOINT_METADATA").unlink()
    assert hf.is_checkpoint(path)
    assert differences(hf.load(path, core), core) == []
    found = hf.load_checkpointables(path, {"state": core, "config": hf.args.JsonRestore()})
    assert found["config"] == {"n": 1}
    with pytest.raises(FileExistsError):  # it is read, and never replaced
        hf.save(path, core, overwrite=True)
    with ocp0.StandardCheckpointer() as old:
        old.save(path.parent / "run" / "7", core)
    (path.parent / "run" / "7" / "_CHECKPOINT_METADATA").unlink()
    assert not hf.is_checkpoint(path.parent / "run")  # a step is no item
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        hf.load(path.parent / "run")


def test_it_is_deleted_as_a_whole_and_never_an_item_of_it(path, core):
    v1()(path, core)
    with pytest.raises(NotImplementedError, match="Orbax wrote"):
        hf.delete(path, checkpointable_name="state", missing_ok=True)
    with pytest.raises(FileNotFoundError, match="has no item 'absent'"):
        hf.delete(path, checkpointable_name="absent")
    assert hf.delete(path, checkpointable_name="absent", missing_ok=True) is False
    assert differences(hf.load(path, core), core) == []
    assert hf.delete(path)
    assert not path.exists()
    assert hf.delete(path, missing_ok=True) is False


def test_a_json_item_is_restored_by_the_json_handler(path):
    with ocp0.Checkpointer(ocp0.JsonCheckpointHandler()) as checkpointer:
        checkpointer.save(path, ocp0.args.JsonSave({"a": [1, None]}))
    with hf.Checkpointer(hf.JsonCheckpointHandler()) as checkpointer:
        assert checkpointer.restore(path) == {"a": [1, None]}


def test_metadata_describes_without_reading(path, core):
    ocp.save(path, core, custom_metadata={"run": 4})
    found = hf.metadata(path)
    assert found.custom_metadata == {"run": 4}
    kernel = found.metadata["params"]["dense"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((64, 32), np.float32)
    assert found.init_timestamp_nsecs < found.commit_timestamp_nsecs
    assert differences(hf.load(path, found), core) == []


def test_it_is_a_checkpoint_that_verify_reads(path, core):
    ocp.save(path, core)
    assert hf.is_checkpoint(path)
    assert hf.verify(path).ok
    assert not hf.is_checkpoint(path.parent)


def test_an_unfinished_save_is_no_checkpoint(path, core):
    ocp.save(path, core)
    unfinished = path.rename(path.with_name("7.orbax-checkpoint-tmp"))
    with pytest.raises(FileNotFoundError, match="never committed"):
        hf.load(unfinished)


def test_a_path_inside_a_checkpoint_is_told_as_such(path, core):
    ocp.save(path, core)
    with pytest.raises(FileNotFoundError, match="inside the checkpoint"):
        hf.load(path / "state")


def test_saving_over_it_needs_overwrite_and_then_replaces_it_whole(path, core):
    ocp.save(path, core)
    with pytest.raises(FileExistsError):
        hf.save(path, {"w": 1})
    assert differences(hf.load(path), core) == []
    hf.save(path, {"w": 1}, overwrite=True)
    assert hf.load(path) == {"w": 1}


def test_a_run_of_the_v1_checkpointer_goes_on_in_ours(tmp_path, core):
    with ocp.training.Checkpointer(tmp_path, custom_metadata={"run": "x"}) as theirs:
        for step in (0, 3, 12):
            theirs.save(step, core, metrics={"loss": 1 / (step + 1)}, force=True)
    with hf.training.Checkpointer(tmp_path) as ours:
        assert [entry.step for entry in ours.checkpoints] == [0, 3, 12]
        assert ours.latest.metrics == {"loss": 1 / 13}
        assert ours.root_metadata().custom_metadata == {"run": "x"}
        assert differences(ours.load(), core) == []
        assert differences(ours.load(3, blank(core)), core) == []
        ours.save(20, core)
        assert ours.latest.step == 20
    with ocp.training.Checkpointer(tmp_path) as theirs:
        assert [entry.step for entry in theirs.checkpoints] == [0, 3, 12, 20]


@pytest.mark.parametrize("named", [True, False], ids=["named items", "one unnamed item"])
def test_a_run_of_the_v0_manager_opens_in_ours(tmp_path, core, named):
    options = ocp0.CheckpointManagerOptions(best_fn=lambda m: m["loss"], best_mode="min")
    with ocp0.CheckpointManager(tmp_path, options=options, metadata={"run": "x"}) as theirs:
        for step in (0, 5):
            item = ocp0.args.StandardSave(core)
            args = ocp0.args.Composite(state=item, c=ocp0.args.JsonSave({})) if named else item
            theirs.save(step, args=args, metrics={"loss": 0.5})
        theirs.wait_until_finished()
    with hf.training.Checkpointer(tmp_path) as ours:
        assert [entry.step for entry in ours.checkpoints] == [0, 5]
        assert ours.latest.metrics == {"loss": 0.5}
        assert ours.root_metadata().custom_metadata == {"run": "x"}
        assert differences(ours.load(), core) == []
        assert differences(ours.load(0, blank(core)), core) == []


def test_entries_that_orbax_would_not_list_are_no_steps(tmp_path, core):
    with ocp.training.Checkpointer(tmp_path) as theirs:
        theirs.save(3, core)
    for name in ("007", "abc", "-4", "1e3", "9.0", "5.orbax-checkpoint-tmp", "8"):
        (tmp_path / name).mkdir()
    (tmp_path / "77").write_text("a file")
    with hf.training.Checkpointer(tmp_path) as ours:
        assert [entry.step for entry in ours.checkpoints] == [3]  # Orbax also lists the empty 8


def test_a_target_that_does_not_fit_is_told_in_full(path, core):
    ocp.save(path, {"a": np.ones((3, 2)), "b": jnp.ones(3), "c": 1})
    target = {"a": np.ones((2, 3)), "b": jnp.ones(3, jnp.int32), "d": 1}
    with pytest.raises(hf.errors.TreeMismatchError, match=r"(?s)'d'.*in the target.*'c'"):
        hf.load(path, target)
    with pytest.raises(hf.errors.TreeMismatchError, match=r"'a'.*\[2, 3\].*\[3, 2\]"):
        hf.load(path, {"a": np.ones((2, 3)), "b": ..., "c": ...})
    with pytest.raises(hf.errors.TreeMismatchError, match="'b'.*int32.*float32"):
        hf.load(path, {"a": ..., "b": jnp.ones(3, jnp.int32), "c": ...})
    unsafe = hf.load(path, {"a": ..., "b": jnp.zeros(3, jnp.int32), "c": ...}, cast="unsafe")
    assert differences(unsafe["b"], jnp.ones(3, jnp.int32)) == []


def test_keys_of_another_shape_than_the_target_are_told(path):
    ocp.save(path, {"keys": jax.random.split(jax.random.key(1), 3)})
    with pytest.raises(hf.errors.TreeMismatchError, match=r"'keys'.*\[\].*\[3\]"):
        hf.load(path, {"keys": jax.random.key(1)})


@pytest.fixture(scope="module")
def by_two_processes(tmp_path_factory):
    """What two processes with two devices each saved together."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, "-m", "integration.interop.orbax_two_processes", address]
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(
                subprocess.Popen(
                    [*command, str(process), folder],
                    cwd=Path(__file__).resolve().parents[2],
                    env={**os.environ, "JAX_PLATFORMS": "cpu"},
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for process in range(2)
        ]
        stack.callback(lambda: [writer.kill() for writer in writers])
        said = [writer.communicate(timeout=120)[1] for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0], said
    return folder


@pytest.mark.parametrize("api", ["v1", "v0"])
def test_what_two_processes_saved_loads_in_one(by_two_processes, api):
    """Half of its devices do not exist here, which is where Orbax gives up without a target."""
    found = hf.load(by_two_processes / api)
    here = {name: jax.device_put(array, jax.devices()[0]) for name, array in HOST.items()}
    assert differences(found, here | {"step": 4}) == []
    numpy = {name: np.zeros_like(array) for name, array in HOST.items()}
    assert (
        differences(hf.load(by_two_processes / api, numpy | {"step": 0}), HOST | {"step": 4}) == []
    )
