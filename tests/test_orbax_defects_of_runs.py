"""Defects of Orbax that concern runs and their steps; here they are repaired.

The shortest test of each that is not the subject of a file of its own in `packages/manager/tests`.
"""

import numpy as np
import pytest

import holdfast as hf

t = hf.training


def state(value):
    return {"w": np.full(3, value), "step": value}


def steps(run):
    return [entry.step for entry in run.checkpoints]


def test_a_step_is_a_checkpoint_like_any_other(place):
    """Orbax has two dialects on the disk: what `save` writes, and the steps of a run."""
    with t.Checkpointer(f"{place}/run") as run:
        run.save(1, state(1), custom_metadata={"a": 1})
        run.save(2, state(2), metrics={"loss": 0.5})
    hf.save(f"{place}/alone", state(1), custom_metadata={"a": 1})
    step, alone = f"{place}/run/1", f"{place}/alone"
    assert hf.load(step)["step"] == hf.load(alone)["step"] == 1
    assert hf.load(step, state(0))["w"].tolist() == [1, 1, 1]
    assert list(hf.load_checkpointables(step)) == list(hf.load_checkpointables(alone)) == ["state"]
    assert hf.metadata(step).custom_metadata == hf.metadata(alone).custom_metadata == {"a": 1}
    assert list(hf.load_checkpointables(f"{place}/run/2")) == ["state"]
    hf.save(f"{place}/run/3", state(3))  # and the other way round
    with t.Checkpointer(f"{place}/run") as run:
        assert (steps(run), run.load()["step"]) == ([1, 2, 3], 3)


@pytest.mark.parametrize("force", [False, True])
def test_a_manager_deletes_nothing_that_it_does_not_know(tmp_path, force):
    """Orbax's saves with `force=True` inside: what is in the way is gone without a word."""
    foreign = tmp_path / "5" / "notes" / "mine.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")
    args = hf.args.StandardSave(state(5))
    manager = hf.CheckpointManager(tmp_path)
    with pytest.raises(hf.errors.DestinationOccupiedError):
        manager.save(5, args=args, force=force)
        manager.wait_until_finished()
    manager.close()
    assert foreign.read_text() == "precious"
    with hf.CheckpointManager(
        tmp_path, options=hf.CheckpointManagerOptions(step_prefix="other")
    ) as hidden:  # 5 is hidden from it by the name format
        assert hidden.save(5, args=args)
    assert foreign.read_text() == "precious"


def test_asking_whether_to_save_changes_nothing_and_counts_nothing(place):
    """In Orbax some policies use up an operation id, or the key-value store, when asked."""

    class Every(t.save_decision_policies.FixedIntervalPolicy):
        asked = 0

        def should_save(self, step, previous_steps, *, context):
            type(self).asked += 1
            return super().should_save(step, previous_steps, context=context)

    continuous = t.save_decision_policies.ContinuousCheckpointingPolicy()
    policy = t.save_decision_policies.AnySavePolicy([Every(2), continuous])
    with t.Checkpointer(place, save_decision_policy=policy) as run:
        assert [run.should_save(step) for step in (0, 1, 2, 2)] == [True] * 4
        assert Every.asked == 4
        assert steps(run) == []
        assert not run.is_saving_in_progress()
        assert run.save(0, state(0))
        assert run.should_save(0) is False  # committed


def test_errors_are_of_the_kinds_that_programs_catch(place):
    with t.Checkpointer(place) as run:
        for missing in (None, 7, np.int64(7)):  # an AttributeError in Orbax, for that of numpy
            with pytest.raises(FileNotFoundError) as told:
                run.load(missing)
            assert isinstance(told.value, hf.errors.StepNotFoundError)
        run.save(1, state(1))
        with pytest.raises(FileExistsError):
            run.save(1, state(2))
        with pytest.raises(ValueError):
            run.save(1, state(2))
        with pytest.raises(KeyError, match="nope"):
            run.load(1, checkpointable_name="nope")
        with pytest.raises(ValueError, match=r"\[4\]") as told:
            run.load(1, {"w": np.zeros(4), "step": 0})
        assert isinstance(told.value, hf.errors.TreeMismatchError)
        with pytest.raises(ValueError, match="reserved"):
            run.save_checkpointables(2, {"metrics": {"a": 1}})
        with pytest.raises(TypeError):
            run.load(1.5)
        assert run.load(np.int64(1))["step"] == run.load(run.latest)["step"] == 1


def test_a_refused_save_wedges_nothing(place):
    """After `StepAlreadyExistsError` Orbax's manager says for ever that it is saving."""
    policy = t.save_decision_policies.ContinuousCheckpointingPolicy()
    with t.Checkpointer(place, save_decision_policy=policy) as run:
        assert run.save(1, state(1))
        with pytest.raises(hf.errors.StepAlreadyExistsError):
            run.save(1, state(1), force=True)
        assert not run.is_saving_in_progress()
        assert run.save(2, state(2))


def test_a_declined_save_does_not_look_at_the_state(place):
    """In Orbax each makes new handlers and looks at every leaf, at every step of a training."""

    policy = t.save_decision_policies.FixedIntervalPolicy(10)
    with t.Checkpointer(place, save_decision_policy=policy) as run:
        assert run.save(0, state(0))
        for save in (run.save, run.save_async, run.save_checkpointables):
            declined = save(5, {"x": object()})
            assert (bool(declined), declined.saved) == (False, False)
            assert "FixedIntervalPolicy" in declined.reason
        with pytest.raises(ValueError, match="'x'"):
            run.save(10, {"x": object()})
        assert run.save(10, state(10))


def test_some_of_the_processes_can_have_a_run_of_their_own(place):
    """Orbax's Checkpointer cannot even be made with `active_processes`."""
    context = hf.Context(
        multiprocessing=hf.options.MultiprocessingOptions(active_processes={0}, primary_host=0)
    )
    with t.Checkpointer(place, context=context) as run:
        assert run.save(1, state(1))
        assert run.load()["step"] == 1
