"""What a sweep of many checkpoints asks for, and what it still finds among them."""

import collections
import contextlib

import pytest

from holdfast_metadata import (
    ATTEMPT_FILE,
    COMMIT_FILE,
    MANIFEST_FILE,
    Manifest,
    ManifestEntry,
)
from holdfast_storage import StorageError, keys
from holdfast_storage.commit import layout, read_record
from holdfast_storage.testing.faulty import Fault, FaultyBackend
from holdfast_storage.testing.history import History, strategy_for
from holdfast_storage.testing.tables import TableBackend

MANY = 40
STORES = {
    "pointer": TableBackend,
    "rename": lambda: TableBackend(rename=True, exchange=True),
    "decided": lambda: TableBackend(decided=True),
}


@pytest.fixture(params=STORES)
def store(request):
    return STORES[request.param]()


async def save(store, *finals):
    for final in finals:
        history = History(final)
        await history.save(store, "A")
        assert history.acknowledged == {"A"}


async def sweep(store):
    view = FaultyBackend(store, reads=True)
    report = await (await strategy_for(view)).sweep("", older_than=0.0)
    return report, collections.Counter(call.operation for call in view.calls)


async def test_a_look_at_many_checkpoints_is_a_listing_and_at_most_a_read_of_each(store):
    await save(store, *map(str, range(MANY)))
    report, asked = await sweep(store)
    assert (report.removed, report.spared) == ((), ())
    assert asked["children"] == 1 + MANY  # one request where the store lists all in one
    assert asked["get"] == (0 if (await store.commit_strategy()).name == "rename" else MANY)
    assert asked.keys() <= {"children", "get", "stat", "abort"}


async def test_the_one_with_a_dead_attempt_is_found_among_them(store):
    await save(store, *map(str, range(MANY)))
    begun = await (await strategy_for(store)).begin("7")
    report, _ = await sweep(store)
    assert len(report.removed) == 1
    assert not [key for key in store.objects if keys.is_under(key, begun.staging)]
    assert (await read_record(store, "7")).committed


@pytest.mark.parametrize("kind", ["pointer", "no exchange", "decided"])
async def test_a_removal_that_was_cut_short_anywhere_is_finished(kind):
    """Of a checkpoint that replaced one which lies in the final itself."""
    store = TableBackend(rename=True) if kind == "no exchange" else STORES[kind]()
    await save(store, "7")
    await History("7").overwrite(store, "B")
    record = (await read_record(store, "7")).record
    assert record.data
    if kind == "pointer":  # as after a copy from a store that renames
        old = Manifest([ManifestEntry("a", 3)]).to_bytes()
        for name, data in {"a": b"old", MANIFEST_FILE: old}.items():
            await store.put(f"7/{name}", data)
    assert f"7/{MANIFEST_FILE}" in store.objects
    start, number, ended = dict(store.objects), 0, False
    while not ended:
        number += 1
        store.objects = dict(start)
        view = FaultyBackend(store, {number: Fault.REFUSE})
        with contextlib.suppress(StorageError):
            await (await strategy_for(view)).retire("7", expected=record.attempt)
            ended = len(view.calls) < number
        if (await read_record(store, "7")).committed:
            continue
        for _ in range(2):
            await sweep(store)
        left = {key for key in store.objects if keys.is_under(key, "7")}
        assert left == {f"7/{COMMIT_FILE}"}, number
    assert number > 4


@pytest.mark.parametrize("fault", [Fault.LOSE_REPLY, Fault.REFUSE])
async def test_a_save_that_did_not_begin_leaves_no_mark(store, fault):
    view = FaultyBackend(store, {1: fault})
    with pytest.raises(StorageError, match="injected"):
        await (await strategy_for(view)).begin("7")
    assert view.calls[0].key.endswith(ATTEMPT_FILE)
    assert not [key for key in store.objects if layout.in_attempt(key)]
    await save(store, "7")
