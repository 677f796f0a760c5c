"""What a kill between the decision and the rename leaves, and who finishes it."""

import pytest

from holdfast_storage.commit import list_committed
from holdfast_storage.testing.faulty import Fault, FaultyBackend
from holdfast_storage.testing.history import History
from holdfast_storage.testing.tables import TableBackend


@pytest.fixture
async def decided():
    """A store in which a writer died right before its rename."""
    store = TableBackend(decided=True)
    counted = FaultyBackend(TableBackend(decided=True))
    await History("run/7").save(counted, "A")
    rename = next(call.number for call in counted.calls if call.operation == "rename")
    await History("run/7").save(FaultyBackend(store, {rename: Fault.CRASH}), "A")
    assert ".7.commit" in {info.key.rpartition("/")[2] async for info in store.walk("run")}
    return store


async def names(store):
    return [entry.name for entry in (await list_committed(store, "run")).committed]


async def test_a_listing_alone_shows_nothing_and_changes_nothing(decided):
    before = dict(decided.objects)
    assert await names(decided) == []
    assert decided.objects == before


async def test_opening_a_run_publishes_it(decided):
    await decided.settle("run", await decided.children("run"))
    assert await names(decided) == ["7"]
    await decided.settle("run", await decided.children("run"))
    assert await names(decided) == ["7"]


async def test_the_next_save_publishes_it_and_is_told_that_it_stands_there(decided):
    history = History("run/7")
    await history.save(decided, "B")
    assert history.refused == {"B": "CommitConflictError"}
    assert await names(decided) == ["7"]


async def test_what_cannot_be_published_now_is_left_for_later(decided):
    view = FaultyBackend(decided, {1: Fault.REFUSE})
    strategy = type(await decided.commit_strategy())(view)
    await strategy.settle("run", await decided.children("run"))
    assert await names(decided) == []
    await decided.settle("run", await decided.children("run"))
    assert await names(decided) == ["7"]
