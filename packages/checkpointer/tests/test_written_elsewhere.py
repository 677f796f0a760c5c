"""Checkpoints in a run to which another process writes are not replaced or deleted unasked."""

import dataclasses
import os
import uuid

import numpy as np
import pytest

import holdfast as hf
from holdfast_metadata import Lease
from holdfast_storage import LeaseHeldError, get_loop, open_backend
from holdfast_storage.commit import identity
from holdfast_storage.lease.epochs import lease_key, read_epoch
from holdfast_storage.testing.faulty import FaultyBackend


def state(value):
    return {"w": np.full(3, value)}


@pytest.fixture
def run(place):
    """A run of steps 1 and 2 that another process of this host writes to."""
    for step in (1, 2):
        hf.save_checkpointables(f"{place}/{step}", {"state": state(step), "more": state(0)})
    backend = open_backend(place)
    other = dataclasses.replace(
        identity.new_mark(uuid.uuid4().hex, "lease"),
        pid=os.getppid(),
        process_start=identity._process_start(os.getppid()),
    )
    get_loop().run(backend.put(lease_key("", 1), Lease(1, other).to_bytes()))
    return place


CHANGES = {
    "save": lambda run, **how: hf.save(f"{run}/1", state(9), overwrite=True, **how),
    "items": lambda run, **how: hf.save_checkpointables(
        f"{run}/1", {"state": state(9)}, overwrite=True, **how
    ),
    "copy": lambda run, **how: hf.copy(f"{run}/2", f"{run}/1", overwrite=True, **how),
    "delete": lambda run, **how: hf.delete(f"{run}/1", **how),
    "delete an item": lambda run, **how: hf.delete(f"{run}/1", checkpointable_name="more", **how),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_it_is_refused_with_who_writes_and_done_if_that_is_meant(run, change):
    told = rf"process {os.getppid()} on .* Nothing was written. .*force=True"
    with pytest.raises(LeaseHeldError, match=told):
        change(run)
    assert hf.load_checkpointables(f"{run}/1")["more"]["w"][0] == 0
    change(run, force=True)
    assert hf.is_checkpoint(f"{run}/1") is False or change is not CHANGES["delete"]
    assert get_loop().run(read_epoch(open_backend(run), 1)) is not None  # its lease is as it was


def test_what_replaces_nothing_is_not_refused(run):
    hf.save(f"{run}/3", state(3), overwrite=True)
    hf.copy(f"{run}/3", f"{run}/4", overwrite=True)
    assert hf.load(f"{run}/4")["w"][0] == 3
    with pytest.raises(FileExistsError, match="overwrite=True"):
        hf.save(f"{run}/1", state(9))


def test_force_of_a_v0_checkpointer_means_both(run):
    with hf.Checkpointer(hf.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{run}/1", state(9), force=True)
        assert checkpointer.restore(f"{run}/1")["w"][0] == 9


def test_a_run_of_this_process_may_be_changed_by_it(place):
    with hf.training.Checkpointer(place) as run:
        run.save(1, state(1))
        hf.save(f"{place}/1", state(2), overwrite=True)
        assert run.load(1)["w"][0] == 2
        assert hf.delete(f"{place}/1")


def test_it_costs_a_listing_and_only_where_something_is_replaced(tmp_path, monkeypatch):
    view = FaultyBackend(open_backend(str(tmp_path)), reads=True)
    monkeypatch.setattr(hf.Context, "locate", lambda *_: (view, "1"))
    hf.save(tmp_path / "1", state(1), overwrite=True)
    assert not [call for call in view.calls if call.key.startswith("_lease")]
    hf.save(tmp_path / "1", state(2), overwrite=True)
    hf.delete(tmp_path / "1")
    asked = [call.operation for call in view.calls if call.key.startswith("_lease")]
    assert asked == ["children", "children"]
