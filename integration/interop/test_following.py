"""Following runs that Orbax writes, beside what Orbax's own iterator makes of them."""

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

import holdfast as hf


def state(step):
    return {"w": jnp.full(3, float(step))}


@pytest.mark.parametrize("names", [{}, {"step_prefix": "ckpt", "step_format_fixed_length": 8}])
def test_a_run_that_orbax_writes_is_followed_step_by_step(tmp_path, names):
    options = ocp.CheckpointManagerOptions(max_to_keep=2, **names)
    reader = hf.training.Checkpointer(
        tmp_path / "run", step_name_format=hf.path.step.standard_name_format(**names)
    )
    seen = []
    with ocp.CheckpointManager(tmp_path / "run", options=options) as manager:
        iterator = hf.checkpoint_utils.checkpoints_iterator(tmp_path / "run", timeout=0, **names)
        manager.save(1, args=ocp.args.StandardSave(state(1)))
        manager.wait_until_finished()
        for step in iterator:
            assert reader.load(step)["w"][0] == step
            seen.append(step)
            if step < 5:
                for number in (step + 1, step + 2):
                    manager.save(number, args=ocp.args.StandardSave(state(number)))
                manager.wait_until_finished()
    assert seen == [1, 3, 5]


def test_both_libraries_follow_alike_and_our_leases_and_strays_mislead_neither(tmp_path):
    run = tmp_path / "run"
    with hf.training.Checkpointer(run) as ours:
        for step in (1, 2):
            ours.save(step, state(step))
    for stray in ("3.foo", "4.orbax-checkpoint-tmp", "_SNAPSHOTS"):
        (run / stray).mkdir()
    with hf.training.Checkpointer(run) as reader, reader.reading(1):
        theirs = list(ocp.checkpoint_utils.checkpoints_iterator(run, timeout=0))
        mine = list(hf.checkpoint_utils.checkpoints_iterator(run, timeout=0))
        with ocp.CheckpointManager(run) as manager:
            assert sorted(manager.all_steps()) == [1, 2]
            manager.save(5, args=ocp.args.StandardSave(state(5)))
        assert len(list((run / "_readers").iterdir())) == 1
    assert theirs == mine == [2]
    assert list((run / "_readers").iterdir()) == []


def test_what_orbax_calls_twice_is_called_once(tmp_path):
    calls = {"theirs": 0, "mine": 0}

    def answer(who):
        calls[who] += 1
        return calls[who] > 1

    for who, library in (("theirs", ocp), ("mine", hf)):
        iterator = library.checkpoint_utils.checkpoints_iterator(
            tmp_path, timeout=0, seconds_to_sleep=0.01, timeout_fn=lambda who=who: answer(who)
        )
        assert list(iterator) == []
    assert calls == {"theirs": 3, "mine": 2}
