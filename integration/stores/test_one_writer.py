"""One writer at a time for a run on each kind of object store."""

import dataclasses
import uuid

import pytest

import holdfast as hf
from holdfast_storage import LeaseHeldError, LeaseLostError, get_loop, open_backend
from holdfast_storage.commit import identity
from holdfast_storage.lease import Patience, ProcessLeases, acquire, find_holder
from holdfast_storage.lease.epochs import list_epochs, read_epoch


def far_away():
    own = identity.new_mark(uuid.uuid4().hex, "lease")
    return dataclasses.replace(own, host="far-away", boot_id="far-away", pid=4711)


@pytest.fixture
def place(object_store):
    return f"{object_store.root}/run"


@pytest.fixture
def other(place):
    """The lease of a job on another host, in which it has saved nothing yet."""
    leases = ProcessLeases()
    held = get_loop().run(acquire(open_backend(place), leases=leases, mark=far_away, beat_s=3600))
    yield held
    leases.release_all()


def test_a_lease_is_refused_while_it_moves_taken_when_told_and_lost_then(place, other):
    backend = open_backend(place)

    async def refused():
        async def sleep(_):
            await other.beat()

        with pytest.raises(LeaseHeldError, match="process 4711 on far-away") as told:
            await acquire(backend, leases=ProcessLeases(), patience=Patience(sleep=sleep))
        return told.value.pid

    assert get_loop().run(refused()) == 4711
    with hf.training.Checkpointer(place, takeover=True) as run:
        assert run.save(1, {"step": 1})
        with pytest.raises(LeaseLostError):
            get_loop().run(other.require())
        assert run.save(2, {"step": 2})
    assert [entry.step for entry in hf.training.Checkpointer(place).checkpoints] == [1, 2]
    epochs = get_loop().run(list_epochs(backend))
    assert list(epochs) == [2]
    assert get_loop().run(read_epoch(backend, 2)).released
    with hf.training.Checkpointer(place) as again:  # at once
        assert again.save(3, {"step": 3})


def test_a_silent_one_is_succeeded_when_the_observer_has_waited(place, other):
    now = iter(range(0, 10_000, 20))
    waited = []

    async def sleep(seconds):
        waited.append(seconds)

    async def succeed():
        leases = ProcessLeases()
        patience = Patience(clock=lambda: next(now), sleep=sleep)
        backend = open_backend(place)
        held = await acquire(backend, leases=leases, patience=patience, beat_s=3600)
        found = await find_holder(backend, leases=leases)
        assert (held.epoch, found.epoch, found.alive) == (2, 2, True)
        return leases

    leases = get_loop().run(succeed())
    assert waited
    leases.release_all()
