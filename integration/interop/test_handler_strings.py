"""What the strings in `_CHECKPOINT_METADATA` mean, in both directions and for old checkpoints."""

import json
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import holdfast as hf
from integration.interop.test_handlers import ITEMS, assert_same, saving

TREE = {"w": np.arange(6.0).reshape(2, 3), "n": 2}
ALONE = {
    name: ITEMS[name]
    for name in ("state", "tree", "config", "array", "raw_key", "typed_key", "legacy", "modern")
}


def handler(library, kind):
    return getattr(library, f"{kind}CheckpointHandler")()


@pytest.mark.parametrize("name", ALONE)
def test_one_item_of_each_handler_goes_both_ways_without_arguments(name, tmp_path):
    kind, item = ITEMS[name]
    with ocp.Checkpointer(handler(ocp, kind)) as theirs, hf.Checkpointer(handler(hf, kind)) as ours:
        ours.save(tmp_path / "ours", args=getattr(hf.args, f"{kind}Save")(item))
        theirs.save(tmp_path / "theirs", args=getattr(ocp.args, f"{kind}Save")(item))
        restore = getattr(ocp.args, f"{kind}Restore")()
        assert_same(theirs.restore(tmp_path / "ours", args=restore), item)
        assert_same(ours.restore(tmp_path / "theirs"), item)
        described = [ours.metadata(tmp_path / path) for path in ("ours", "theirs")]
        assert described[0].item_handlers == described[1].item_handlers
        assert theirs.metadata(tmp_path / "ours").item_handlers == described[0].item_handlers


def test_a_run_of_holdfasts_is_restored_by_orbaxs_manager_without_arguments(tmp_path):
    with hf.training.Checkpointer(tmp_path / "named") as run:
        run.save(1, TREE, metrics={"loss": 0.5})
    with hf.training.Checkpointer(tmp_path / "default") as run:
        run.save(1, TREE, checkpointable_name="default")
    with ocp.CheckpointManager(tmp_path / "named") as manager:
        found = manager.restore(1)
        assert found.metrics == {"loss": 0.5}
        assert_same(found.state, TREE)
    with ocp.CheckpointManager(tmp_path / "default") as manager:
        assert_same(manager.restore(1), TREE)
        assert manager.item_metadata(1)["w"].shape == (2, 3)
    assert_same(v1.load(tmp_path / "named/1"), TREE)
    assert_same(v1.load(tmp_path / "default/1"), TREE)


def default_item(path):
    with ocp.CheckpointManager(path) as manager:
        manager.save(1, args=ocp.args.StandardSave(TREE))
    return {"default": TREE}


def named_items(path):
    options = ocp.CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with ocp.CheckpointManager(path, options=options) as manager:
        manager.save(1, args=saving(ocp), metrics={"loss": 0.5})
    return {**{name: item for name, (_, item) in ITEMS.items()}, "metrics": {"loss": 0.5}}


def old_style_checkpointers(path):
    how = {
        "state": ocp.PyTreeCheckpointer(),
        "config": ocp.Checkpointer(ocp.JsonCheckpointHandler()),
    }
    with ocp.CheckpointManager(path, how) as manager:
        manager.save(1, {"state": TREE, "config": {"layers": 3}})
    return {"state": TREE, "config": {"layers": 3}}


def v1_run(path):
    with v1.training.Checkpointer(path) as run:
        run.save(1, TREE, metrics={"loss": 0.5})
    return {"state": TREE, "metrics": {"loss": 0.5}}


def v1_items(path):
    items = {"state": TREE, "mixed": {"a": [1, None, "x"]}}
    v1.save_checkpointables(path / "1", items)
    return items


@pytest.mark.parametrize(
    "write", [default_item, named_items, old_style_checkpointers, v1_run, v1_items]
)
def test_what_orbax_wrote_is_restored_without_arguments(write, tmp_path):
    items = write(tmp_path / "run")
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(tmp_path / "run/1")
        about = checkpointer.metadata(tmp_path / "run/1")
    assert set(found) == set(items) == set(about.item_metadata)
    for name, item in items.items():
        assert_same(found[name], item)
    assert about.metrics == items.get("metrics", {})
    with hf.training.Checkpointer(tmp_path / "run") as run:
        assert run.latest.step == 1
        trees = [name for name in items if name in ("state", "default")]
        assert_same(run.load(), items[trees[0]])


# --- strings of other versions, and of nobody we know ----------------------------------------


@pytest.fixture
def saved_as(tmp_path):
    """Saves a tree and a JSON value with Orbax, and records other handlers for them."""

    def save(strings):
        path = tmp_path / "saved"
        args = ocp.args.Composite(state=ocp.args.PyTreeSave(TREE), config=ocp.args.JsonSave([1]))
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=args)
        document = path / "_CHECKPOINT_METADATA"
        content = json.loads(document.read_text())
        content["item_handlers"] = strings
        document.write_text(json.dumps(content))
        return path

    return save


OLD = [
    "orbax.checkpoint.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    "orbax.checkpoint.handlers.PyTreeCheckpointHandler",
    "orbax.checkpoint._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    "orbax.checkpoint.v0._src.handlers.pytree_checkpoint_handler.PyTreeCheckpointHandler",
    "orbax.checkpoint.standard_checkpoint_handler.StandardCheckpointHandler",
    "orbax.checkpoint._src.handlers.base_pytree_checkpoint_handler.BasePyTreeCheckpointHandler",
    "orbax.checkpoint.experimental.v1._src.handlers.pytree_handler.PyTreeHandler",
    "orbax.checkpoint.checkpoint_args._LegacyCheckpointHandlerWrapper",
    "CompatibilityCheckpointHandler(orbax.checkpoint.experimental.v1._src.handlers.x.PyTreeHandler)",
    "somebody.elses.Handler",
]
OLD_JSON = [
    "orbax.checkpoint.json_checkpoint_handler.JsonCheckpointHandler",
    "orbax.checkpoint._src.handlers.json_checkpoint_handler.JsonCheckpointHandler",
    "orbax.checkpoint.experimental.v1._src.handlers.json_handler.JsonHandler",
]


@pytest.mark.parametrize("recorded", OLD)
def test_a_tree_is_restored_whatever_module_or_wrapper_is_recorded(saved_as, recorded):
    path = saved_as({"state": recorded, "config": OLD_JSON[0]})
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        assert_same(checkpointer.restore(path).state, TREE)
    assert_same(hf.load(path), TREE)


@pytest.mark.parametrize("recorded", OLD_JSON)
def test_json_is_restored_by_each_of_its_names(saved_as, recorded):
    path = saved_as({"state": OLD[0], "config": recorded})
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        assert checkpointer.restore(path).config == [1]


def test_the_file_name_of_v1s_json_is_read(tmp_path):
    path = tmp_path / "saved"
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path, args=ocp.args.Composite(config=ocp.args.JsonSave({"a": 1})))
    (path / "config/metadata").rename(path / "config/data.json")
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        assert checkpointer.restore(path).config == {"a": 1}
    missing = hf.args.Composite(config=hf.args.JsonRestore())
    with (
        hf.Checkpointer(
            hf.CompositeCheckpointHandler(config=hf.JsonCheckpointHandler("mine"))
        ) as checkpointer,
        pytest.raises(FileNotFoundError, match="mine"),
    ):
        checkpointer.restore(path, args=missing)


def test_a_handler_that_is_registered_for_an_item_wins_over_an_unknown_string(saved_as):
    path = saved_as({"state": "somebody.elses.Handler", "config": "somebody.elses.Other"})
    registered = hf.CompositeCheckpointHandler(config=hf.JsonCheckpointHandler(), state=None)
    with hf.Checkpointer(registered) as checkpointer:
        found = checkpointer.restore(path)
    assert found.config == [1]
    assert_same(found.state, TREE)


def test_an_unknown_string_is_named_and_the_other_items_can_be_read(saved_as):
    path = saved_as({"state": OLD[0], "config": "somebody.elses.Other"})
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        with pytest.raises(ValueError, match=r"item 'config' was saved by somebody\.elses\.Other"):
            checkpointer.restore(path)
        assert checkpointer.metadata(path).item_metadata.config is None
        only = hf.args.Composite(state=hf.args.PyTreeRestore())
        assert_same(checkpointer.restore(path, args=only).state, TREE)


def test_no_module_that_a_file_names_is_imported(saved_as, tmp_path, monkeypatch):
    (tmp_path / "canary_in_a_file.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    recorded = "canary_in_a_file.PyTreeCheckpointHandler"
    path = saved_as({"state": recorded, "config": OLD_JSON[0]})
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        assert_same(checkpointer.restore(path).state, TREE)
        checkpointer.metadata(path)
    hf.load(path)
    hf.metadata(path)
    hf.load_checkpointables(path)
    assert hf.verify(path).ok
    assert "canary_in_a_file" not in sys.modules


def test_saved_keys_are_described_without_their_values(tmp_path):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as ours:
        ours.save(tmp_path / "ours", args=saving(hf))
        found = ours.metadata(tmp_path / "ours").item_metadata
    assert found.config is None
    assert found.state["w"].shape == (2, 3)
    assert found.array.shape == (4,)
    assert jax.tree.leaves(found.tree)[0].shape == (3,)
