"""A run in a store that several simulated processes see."""

import copy
import dataclasses
import functools
from unittest import mock

from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_metadata import parse_json
from holdfast_storage import DamagedCheckpointError, get_loop
from holdfast_storage.commit import list_committed, reading
from holdfast_storage.lease import ProcessLeases
from holdfast_storage.testing.processes import Processes
from holdfast_storage.testing.tables import TableBackend


def behind_a_network(store):
    """Where requests are round trips, a run has hints of its committed steps."""
    store.hints = dataclasses.replace(store.hints, round_trips=True)
    return store


STORES = {
    "pointer": lambda: behind_a_network(TableBackend()),
    "rename": lambda: TableBackend(rename=True, exchange=True),
    "decided": lambda: behind_a_network(TableBackend(decided=True)),
}


def open_run(view, leases, **options):
    """The run as the process has it that sees the store by this view and holds these leases."""
    lease = functools.partial(WritingLease, leases=leases)
    with (
        mock.patch.object(Context, "open_backend", return_value=view),
        mock.patch("holdfast_manager.engine.run.WritingLease", lease),
    ):
        return training.Checkpointer("memory://unused", **options)


class World:
    """A store with a run in it, and the processes that see it.

    Attributes:
        damaged: Steps that may be there without being whole.
    """

    def __init__(self, store, damaged=frozenset()):
        self.store = store
        self.damaged = damaged
        self.processes = Processes(store)

    @classmethod
    def like(cls, other):
        """Another one with the same bytes."""
        store = copy.copy(other.store)
        store.objects = other.store.objects
        return cls(store, other.damaged)

    def open(self, view=None, **options):
        """The run as a process of its own has it: which shares no lease with another."""
        return open_run(view or self.processes.start(), ProcessLeases(), **options)

    def stored(self):
        """The versions that are committed, whole, read from the storage itself."""

        async def read(area):
            await area.check()
            return parse_json(await area.get("x/metadata"), source="x")["version"]

        async def look():
            found = {}
            for entry in (await list_committed(self.store, "")).committed:
                try:
                    found[int(entry.name)] = await reading(self.store, entry.name, read)
                except DamagedCheckpointError:
                    if int(entry.name) not in self.damaged:
                        raise
            return found

        return get_loop().run(look())
