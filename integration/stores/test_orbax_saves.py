"""Checkpoints of Orbax's on object stores, where it commits by a file: finished or not."""

import asyncio

import numpy as np
import orbax.checkpoint as ocp
import pytest

import holdfast as hf
from holdfast_storage import locate

TREE = {"w": np.arange(6.0), "n": 3}


@pytest.fixture
def upload(object_store, tmp_path):
    """Saves with Orbax on a disk, and copies the files to a step of a run, with or without the
    one that Orbax writes last."""
    source = tmp_path / "orbax" / "1"
    with ocp.CheckpointManager(source.parent) as manager:
        manager.save(1, args=ocp.args.StandardSave(TREE))

    async def put(step, left_out):
        backend, final = locate(f"{object_store.root}/run/{step}")
        for path in source.rglob("*"):
            if path.is_file() and path.name != left_out:
                await backend.put(f"{final}/{path.relative_to(source)}", path.read_bytes())

    def run(step, left_out=""):
        asyncio.run(put(step, left_out))
        return f"{object_store.root}/run/{step}"

    return run


def test_a_save_that_orbax_did_not_finish_is_no_checkpoint(object_store, upload):
    done, open_end = upload(1), upload(2, left_out="commit_success.txt")
    assert hf.is_checkpoint(done)
    np.testing.assert_array_equal(hf.load(done)["w"], TREE["w"])
    assert not hf.is_checkpoint(open_end)
    with pytest.raises(hf.errors.UnfinishedCheckpointError, match=r"commit_success\.txt"):
        hf.load(open_end)
    with pytest.raises(hf.errors.UnfinishedCheckpointError, match="allow_legacy_atomic_rename"):
        hf.metadata(open_end)
    with hf.training.Checkpointer(f"{object_store.root}/run") as run:
        assert [entry.step for entry in run.checkpoints] == [1]
    for overwrite in (False, True):  # Orbax may be writing it at this moment
        with pytest.raises(FileExistsError, match="not finished"):
            hf.save(open_end, TREE, overwrite=overwrite)


def test_what_an_old_orbax_renamed_and_somebody_copied_is_taken_when_asked(object_store, upload):
    path = upload(3, left_out="commit_success.txt")
    atomicity = hf.options.AtomicityOptions(allow_legacy_atomic_rename=True)
    context = hf.Context(atomicity=atomicity)
    assert hf.is_checkpoint(path, context=context)
    np.testing.assert_array_equal(hf.load(path, context=context)["w"], TREE["w"])
    with hf.training.Checkpointer(f"{object_store.root}/run", context=context) as run:
        assert run.latest.step == 3
        np.testing.assert_array_equal(run.load()["w"], TREE["w"])
