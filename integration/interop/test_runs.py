"""Runs that Orbax began: opened, listed, gone on with, and what retention makes of both."""

import datetime

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from orbax.checkpoint import v1

import holdfast as hf
from holdfast.path import step as names

keep = hf.training.preservation_policies
PREFIXED = names.standard_name_format(step_prefix="ckpt", step_format_fixed_length=4)

NAMED_BY_ORBAX = ocp.CheckpointManagerOptions(
    step_prefix="ckpt", step_format_fixed_length=4, read_only=True
)


@pytest.fixture
def run(tmp_path):
    """Three steps written by Orbax's manager, with names of their own and metrics."""
    options = ocp.CheckpointManagerOptions(
        step_prefix="ckpt", step_format_fixed_length=4, best_fn=lambda metrics: metrics["loss"]
    )
    with ocp.CheckpointManager(tmp_path, options=options) as manager:
        for step in range(3):
            state = ocp.args.StandardSave({"w": jnp.full(3, float(step))})
            manager.save(step, args=state, metrics={"loss": float(step)})
    return tmp_path


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def test_a_run_of_orbax_is_gone_on_with_and_both_kinds_load(run):
    now = datetime.datetime.now(datetime.UTC)
    with hf.training.Checkpointer(run, step_name_format=PREFIXED) as ours:
        assert steps(ours) == [0, 1, 2]
        assert ours.latest.metrics == {"loss": 2.0}
        assert abs(ours.latest.time - now) < datetime.timedelta(hours=1)
        assert ours.latest.size_bytes > 0
        assert ours.save(3, {"w": jnp.full(3, 3.0)}, metrics={"loss": 0.5})
        assert [ours.load(step)["w"][0] for step in range(4)] == [0, 1, 2, 3]
    assert (run / "ckpt_0003" / "_COMMIT.json").exists()
    with ocp.CheckpointManager(run, options=NAMED_BY_ORBAX) as theirs:
        assert sorted(theirs.all_steps()) == [0, 1, 2, 3]


def test_retention_is_over_both_and_pins_hold_what_orbax_wrote(run):
    policy = keep.LatestN(2)
    with hf.training.Checkpointer(
        run, step_name_format=PREFIXED, preservation_policy=policy
    ) as ours:
        ours.pin(0, "first")
        assert [bool(verdict) for verdict in ours.explain()] == [True, True, True]
        assert ours.save(3, {"w": jnp.full(3, 3.0)})
        ours.wait()
        assert steps(ours) == [0, 2, 3]
        assert ours.load(2)["w"][0] == 2
        assert ours.save(4, {"w": jnp.full(3, 4.0)})
        ours.wait()
        assert steps(ours) == [0, 3, 4]
        ours.unpin("first")
        assert ours.delete(0)
        assert steps(ours) == [3, 4]
    left = sorted(entry.name for entry in run.iterdir() if not entry.name.startswith("_"))
    assert left == ["ckpt_0003", "ckpt_0004"]
    with ocp.CheckpointManager(run, options=NAMED_BY_ORBAX) as theirs:
        assert sorted(theirs.all_steps()) == [3, 4]


def test_the_newest_step_stays_though_orbax_wrote_it(run):
    with hf.training.Checkpointer(
        run, step_name_format=PREFIXED, preservation_policy=keep.LatestN(0)
    ) as ours:
        assert ours.save(1, {"w": jnp.ones(3)}, force=True, overwrite=True)
        ours.wait()
        assert steps(ours) == [2]
        assert ours.load()["w"][0] == 2


def test_what_orbax_wrote_goes_to_the_trash_and_comes_back_for_orbax_too(run):
    trash = hf.training.Trash()
    with hf.training.Checkpointer(run, step_name_format=PREFIXED, trash=trash) as ours:
        assert ours.delete(1)
        with ocp.CheckpointManager(run, options=NAMED_BY_ORBAX) as theirs:
            assert sorted(theirs.all_steps()) == [0, 2]
        assert [(entry.step, entry.size_bytes > 0) for entry in ours.trash] == [(1, True)]
        ours.restore_from_trash(1)
        assert steps(ours) == [0, 1, 2]
        assert ours.load(1)["w"][0] == 1
    with ocp.CheckpointManager(run, options=NAMED_BY_ORBAX) as theirs:
        assert theirs.restore(1, args=ocp.args.StandardRestore())["w"][0] == 1


def test_what_orbax_is_still_writing_and_what_is_nobodys_stays(run):
    busy = run / "ckpt_0007.orbax-checkpoint-tmp"
    (busy / "default").mkdir(parents=True)
    (busy / "_CHECKPOINT_METADATA").write_text("{}")
    (run / "ckpt_0008").mkdir()
    (run / "ckpt_0008" / "notes.txt").write_text("mine")
    with hf.training.Checkpointer(
        run, step_name_format=PREFIXED, preservation_policy=keep.LatestN(1)
    ) as ours:
        assert ours.save(9, {"w": jnp.ones(3)})
        ours.wait()
        ours.sweep(older_than=datetime.timedelta(0))
        assert steps(ours) == [9]
        with pytest.raises(FileNotFoundError):
            ours.delete(8)
    assert (busy / "_CHECKPOINT_METADATA").exists()
    assert (run / "ckpt_0008" / "notes.txt").read_text() == "mine"


def test_the_best_step_counts_those_of_orbax(run):
    best = keep.BestN(get_metric_fn=lambda metrics: metrics["loss"], n=1)
    with hf.training.Checkpointer(run, step_name_format=PREFIXED, preservation_policy=best) as ours:
        ours.save(3, {"w": jnp.ones(3)}, metrics={"loss": 1.5})
        assert ours.best.step == 2


def test_policies_of_orbax_itself_can_be_given(run):
    policy = v1.training.preservation_policies.LatestN(2)
    with hf.training.Checkpointer(
        run, step_name_format=PREFIXED, preservation_policy=policy
    ) as ours:
        for step in (3, 4, 5):
            ours.save(step, {"w": jnp.ones(3)})
        ours.wait()
        assert steps(ours) == [4, 5]
