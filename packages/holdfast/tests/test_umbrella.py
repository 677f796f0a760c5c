"""The whole stack through the one import that users write."""

import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf


@pytest.fixture(params=["local", "memory"])
def place(request, tmp_path):
    """Somewhere empty, on every kind of store that comes with holdfast."""
    return str(tmp_path) if request.param == "local" else f"memory://umbrella{tmp_path}"


def test_a_tree_comes_back_as_it_was_saved(place):
    state = {"w": jnp.arange(6.0).reshape(2, 3), "of": {1: [np.float32(0.5), (None, "x", 2**70)]}}
    hf.save(f"{place}/one", state)
    back = hf.load(f"{place}/one")
    assert back.keys() == state.keys()
    assert (back["w"] == state["w"]).all()
    assert back["of"] == state["of"]
    assert type(back["of"][1][0]) is np.float32


def test_a_taken_path_is_not_touched_unless_asked(place):
    hf.save(f"{place}/one", {"n": 1})
    with pytest.raises(FileExistsError):
        hf.save(f"{place}/one", {"n": 2})
    assert hf.load(f"{place}/one") == {"n": 1}
    hf.save(f"{place}/one", {"n": 2}, overwrite=True)
    assert hf.load(f"{place}/one") == {"n": 2}


def test_a_checkpoint_can_be_asked_about_verified_and_deleted(place):
    path = f"{place}/one"
    assert not hf.is_checkpoint(path)
    hf.save(path, {"w": np.ones((2, 2))}, custom_metadata={"from": "a test"})
    assert hf.is_checkpoint(path)
    assert hf.metadata(path).custom_metadata == {"from": "a test"}
    assert hf.verify(path)
    hf.delete(path)
    with pytest.raises(hf.errors.CheckpointNotFoundError):
        hf.load(path)


def test_a_run_is_saved_in_the_background_and_resumed(place):
    run = f"{place}/run"
    with hf.training.Checkpointer(
        run, preservation_policy=hf.training.preservation_policies.LatestN(2)
    ) as checkpointer:
        for step in range(3):
            checkpointer.save_async(step, {"step": step}, force=True)
    with hf.training.Checkpointer(run) as checkpointer:
        assert checkpointer.latest.step == 2
        assert [c.step for c in checkpointer.checkpoints] == [1, 2]
        assert checkpointer.load() == {"step": 2}


def test_a_skipped_leaf_comes_back_as_the_placeholder(place):
    hf.save(f"{place}/one", {"w": np.ones(3), "huge": np.zeros(100)})
    back = hf.load(f"{place}/one", {"w": np.empty(3), "huge": hf.PLACEHOLDER})
    assert back["huge"] is hf.PLACEHOLDER
    assert (back["w"] == 1).all()


def test_the_v0_style_works_too(place):
    with hf.Checkpointer(hf.StandardCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/v0", args=hf.args.StandardSave({"w": np.ones(2)}))
        assert (checkpointer.restore(f"{place}/v0")["w"] == 1).all()
