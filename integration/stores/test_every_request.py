"""Saves and overwrites with a fault at each of their requests, on every kind of object store."""

import asyncio
import collections
import os

import pytest

from holdfast_storage import errors
from holdfast_storage.commit import open_committed, read_record
from holdfast_storage.testing.history import files_of

WHAT = pytest.mark.parametrize("replace", [False, True], ids=["save", "overwrite"])
FAULTS = {
    "status": "a 503",
    "drop": "a connection cut before",
    "drop_after": "a reply lost",
    "truncate": "a reply cut in half",
}


async def save(strategy, final, label, *, replace=False):
    txn = await strategy.begin(final)
    area = strategy.area(txn)
    for name, data in files_of(label).items():
        await area.put(name, data)
    return await strategy.commit(txn, await strategy.seal(txn, area), replace=replace)


async def contents(backend, final):
    area = await open_committed(backend, final)
    return {name: await area.get(name) for name in files_of("any")}


@WHAT
@pytest.mark.parametrize("action", FAULTS)
async def test_a_fault_at_any_request_costs_nothing(faulty_store, action, replace, record_property):
    """Each request of a save in turn meets the fault once; the save succeeds all the same."""
    plain, proxy = faulty_store.plain, faulty_store.proxy
    strategy = await faulty_store.behind().commit_strategy()
    number, asked = 0, 1
    while number < asked:
        number += 1
        final = f"{number}/7"
        if replace:
            await save(await plain.commit_strategy(), final, "old")
        proxy.clear()
        proxy.add(action, nth=number)
        await save(strategy, final, "new", replace=replace)
        asked = len(proxy.requests)
        assert await contents(plain, final) == files_of("new")
    assert number > 10
    done = "an overwrite" if replace else "a save"
    row = f"{faulty_store.kind} | {FAULTS[action]} at each request of {done} | {number}"
    record_property("outcome", f"{row} | all committed")


def from_the(number):
    """Every request from the given one on."""
    seen = 0

    def applies(_line):
        nonlocal seen
        seen += 1
        return seen >= number

    return applies


@WHAT
async def test_a_service_that_fails_from_any_request_on_keeps_the_old_one(
    faulty_store, replace, record_property
):
    """The service goes away at each request in turn and comes back after the save gave up."""
    plain, proxy = faulty_store.plain, faulty_store.proxy
    faulty = faulty_store.behind(max_attempts=1)
    strategy = type(await faulty.commit_strategy())(
        faulty, grace_s=0.0, decision_deadline_s=0.2, pause_s=0.01
    )
    sweeper = type(strategy)(plain, grace_s=0.0)
    number, found, told = 0, [], collections.Counter()
    while True:
        number += 1
        final = f"{number}/7"
        if replace:
            await save(await plain.commit_strategy(), final, "old")
        proxy.clear()
        proxy.add("drop", times=0).applies = from_the(number)
        try:
            await save(strategy, final, "new", replace=replace)
        except errors.StorageError as error:
            told[type(error).__name__] += 1
        else:
            break
        await plain.settle(f"{number}", await plain.children(f"{number}"))
        stored = await read_record(plain, final)
        found.append(await contents(plain, final) if stored.committed else None)
        await sweeper.sweep(f"{number}", older_than=0.0)
        left = [info.key async for info in plain.walk(f"{number}") if "attempt-" in info.key]
        assert all(str(stored.attempt) in key for key in left), left
    assert number > 10
    assert "CommitUnknownError" in told
    # A hierarchical bucket is decided one request before it is published.
    old = files_of("old") if replace else None
    assert all(one in (old, files_of("new")) for one in found)
    assert found[0] == old
    if "hierarchical" not in faulty_store.kind:
        assert all(one == old for one in found)
    new = found.count(files_of("new"))
    kept = "the old one there" if replace else "nothing there"
    done = "an overwrite" if replace else "a save"
    row = f"{faulty_store.kind} | gone from each request of {done} on | {number - 1}"
    record_property("outcome", f"{row} | {len(found) - new}: {kept}; {new}: the new one there")


async def test_of_two_writers_one_is_told_who_won(faulty_store):
    strategies = [await faulty_store.behind().commit_strategy() for _ in range(2)]
    found = await asyncio.gather(
        *(save(strategy, "7", "new") for strategy in strategies), return_exceptions=True
    )
    winners = [record for record in found if not isinstance(record, Exception)]
    losers = [error for error in found if isinstance(error, errors.CommitConflictError)]
    assert len(winners) == len(losers) == 1
    told = str(losers[0])
    assert f"{winners[0].attempt}, written by process {os.getpid()}" in told


async def test_a_prefix_that_is_an_object_is_foreign(faulty_store):
    backend = faulty_store.plain
    await backend.put("7", b"an object")
    with pytest.raises(errors.DestinationOccupiedError):
        await save(await backend.commit_strategy(), "7", "new")
    assert await backend.get("7") == b"an object"


async def test_a_second_backend_has_the_patience_of_its_process(faulty_store):
    """A save that begins while the store restarts waits as long as one that is under way."""
    await faulty_store.behind().put("k", b"1")
    faulty_store.proxy.add("drop", times=5)
    assert await faulty_store.behind().get("k") == b"1"


async def test_who_was_never_reached_is_told_soon(faulty_store):
    faulty_store.proxy.add("drop", times=0)
    with pytest.raises(errors.TransientStorageError):
        await faulty_store.behind().get("k")
    assert len(faulty_store.proxy.requests) == 4
