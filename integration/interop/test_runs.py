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
    options = ocp.CheckpointManagerOptions(
        step_prefix="ckpt", step_format_fixed_length=4, read_only=True
    )
    with ocp.CheckpointManager(run, options=options) as theirs:
        assert sorted(theirs.all_steps()) == [0, 1, 2, 3]


def test_what_orbax_wrote_stays_is_explained_and_can_be_pinned(run):
    policy = keep.LatestN(1)
    with hf.training.Checkpointer(
        run, step_name_format=PREFIXED, preservation_policy=policy
    ) as ours:
        for step in (3, 4):
            assert ours.save(step, {"w": jnp.full(3, float(step))})
        ours.wait()
        assert steps(ours) == [0, 1, 2, 4]
        assert "Orbax wrote it" in ours.explain()[0].reasons[0]
        ours.pin(0, "first")
        with pytest.raises(NotImplementedError, match="Orbax wrote step 1"):
            ours.delete(1)
        assert steps(ours) == [0, 1, 2, 4]


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
        assert steps(ours) == [0, 1, 2, 4, 5]
