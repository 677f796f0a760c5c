"""Hints of committed steps on every object store, told apart from what is committed."""

import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend


@pytest.fixture
def run(object_store):
    """A run with two steps."""
    with hf.training.Checkpointer(f"{object_store.root}/run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"step": step})
    return f"{object_store.root}/run"


def hints(run):
    listing = get_loop().run(open_backend(run).children("_committed"))
    return [info.key for info in listing.objects]


def test_the_function_delete_takes_the_hint_too(run):
    assert hints(run) == ["_committed/1", "_committed/2"]
    hf.delete(f"{run}/2")
    assert hints(run) == ["_committed/1"]
    with hf.training.Checkpointer(run) as again:
        assert [entry.step for entry in again.checkpoints] == [1]
        assert again.load()["step"] == 1


def test_a_run_whose_hints_are_lost_lists_all_its_steps(run):
    get_loop().run(open_backend(run).delete_prefix("_committed"))
    with hf.training.Checkpointer(run) as again:
        assert [entry.step for entry in again.checkpoints] == [1, 2]
    assert hints(run) == []  # reading repairs nothing
