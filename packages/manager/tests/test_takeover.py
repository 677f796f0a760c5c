"""A second job at a run: refused, let in once it may, and told of what was saved meanwhile."""

import contextlib
import dataclasses
import functools
from unittest import mock

import pytest

from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_metadata import parse_json
from holdfast_storage import LeaseHeldError, LeaseLostError, get_loop
from holdfast_storage.commit import list_committed, reading
from holdfast_storage.lease import ProcessLeases
from holdfast_storage.testing.processes import Processes
from holdfast_storage.testing.tables import TableBackend


def behind_a_network(store):
    store.hints = dataclasses.replace(store.hints, round_trips=True)
    return store


STORES = {
    "pointer": lambda: behind_a_network(TableBackend()),
    "rename": lambda: TableBackend(rename=True, exchange=True),
    "decided": lambda: behind_a_network(TableBackend(decided=True)),
}


class Job:
    """A process that writes to the run, with leases of its own."""

    def __init__(self, processes, **options):
        self.view, self.leases = processes.start(), ProcessLeases()
        lease = functools.partial(WritingLease, leases=self.leases)
        with (
            mock.patch.object(Context, "open_backend", return_value=self.view),
            mock.patch("holdfast_manager.engine.run.WritingLease", lease),
        ):
            self.run = training.Checkpointer("memory://unused", **options)

    def save(self, step, version):
        items = {"x": JsonSave({"step": step, "version": version})}
        return self.run.save_checkpointables(step, items, force=True)

    def listed(self):
        return [entry.step for entry in self.run.checkpoints]

    def end(self):
        self.view.die()
        with contextlib.suppress(BaseException):
            self.run.wait()
        self.leases.release_all()


def stored(store):
    async def read(area):
        await area.check()
        return parse_json(await area.get("x/metadata"), source="x")["version"]

    async def look():
        listing = await list_committed(store, "")
        return {int(one.name): await reading(store, one.name, read) for one in listing.committed}

    return get_loop().run(look())


@pytest.fixture(params=STORES)
def store(request):
    return STORES[request.param]()


@pytest.fixture
def processes(store):
    made = Processes(store)
    with made.known_to_the_system():
        yield made


def test_a_second_job_is_refused_until_the_first_ends_or_is_taken_over(store, processes):
    first, second = Job(processes), Job(processes)
    assert first.save(1, 1)
    before = dict(store.objects)
    with pytest.raises(LeaseHeldError, match=f"process {first.view.pid}"):
        second.save(2, 2)
    for refused in (
        lambda: second.run.delete(1),
        lambda: second.run.empty_trash(),
        lambda: second.run.restore_from_trash(1),
    ):
        with pytest.raises(LeaseHeldError):
            refused()
    assert store.objects == before
    third = Job(processes, takeover=True, preservation_policy=LatestN(2))
    assert first.save(2, 2)
    assert third.listed() == [1]  # as of when it was opened
    assert third.save(3, 3)
    third.run.wait()
    assert third.listed() == [2, 3]  # it has looked again, or it had kept 1
    for lost in (lambda: first.save(4, 4), lambda: first.run.delete(3)):
        with pytest.raises(LeaseLostError):
            lost()
    assert stored(store) == {2: 2, 3: 3}
    third.run.close()
    assert second.save(5, 5)  # what was refused before goes on once it may
    with pytest.raises(LeaseLostError):
        first.save(6, 6)
    assert stored(store) == {2: 2, 3: 3, 5: 5}
    for job in (first, second, third):
        job.end()
