"""Saves and overwrites with a fault at each of their requests."""

import asyncio

import pytest

from holdfast_storage import errors
from holdfast_storage.commit import open_committed, read_record
from holdfast_storage.testing.history import files_of


@pytest.fixture(autouse=True)
def quick_operations(gcs):
    """A rename is done at the first look: these tests make hundreds."""
    gcs.polls = 0


async def save(strategy, final, label, *, replace=False):
    txn = await strategy.begin(final)
    area = strategy.area(txn)
    for name, data in files_of(label).items():
        await area.put(name, data)
    return await strategy.commit(txn, await strategy.seal(txn, area), replace=replace)


async def contents(backend, final):
    area = await open_committed(backend, final)
    return {name: await area.get(name) for name in files_of("any")}


@pytest.mark.parametrize("action", ["status", "drop", "drop_after", "truncate"])
@pytest.mark.parametrize("replace", [False, True], ids=["save", "overwrite"])
async def test_a_fault_at_any_request_of_a_save_costs_nothing(
    gcs_bucket, proxied, opened, action, replace
):
    """Each request of a save in turn meets the fault once; the save succeeds all the same."""
    plain = opened(gcs_bucket)
    faulty = opened(gcs_bucket, endpoint_url=proxied.url)
    strategy = await faulty.commit_strategy()
    number, asked = 0, 1
    while number < asked:
        number += 1
        final = f"{number}/7"
        if replace:
            await save(await plain.commit_strategy(), final, "old")
        proxied.clear()
        proxied.add(action, nth=number)
        await save(strategy, final, "new", replace=replace)
        asked = len(proxied.requests)
        assert await contents(plain, final) == files_of("new")
    assert number > 10


def from_the(number):
    """Every request from the given one on."""
    seen = 0

    def applies(_line):
        nonlocal seen
        seen += 1
        return seen >= number

    return applies


@pytest.mark.parametrize("replace", [False, True], ids=["save", "overwrite"])
async def test_a_service_that_fails_from_any_request_on_keeps_the_old_one(
    gcs_bucket, proxied, opened, replace
):
    """The service goes away at each request in turn and comes back after the save gave up."""
    plain = opened(gcs_bucket)
    faulty = opened(gcs_bucket, endpoint_url=proxied.url, max_attempts=1)
    kind = type(await faulty.commit_strategy())
    strategy = kind(faulty, grace_s=0.0, decision_deadline_s=0.2, pause_s=0.01)
    number, found = 0, []
    while True:
        number += 1
        final = f"{number}/7"
        if replace:
            await save(await plain.commit_strategy(), final, "old")
        proxied.clear()
        proxied.add("drop", times=0).applies = from_the(number)
        try:
            await save(strategy, final, "new", replace=replace)
        except errors.StorageError:
            pass
        else:
            break
        await plain.settle(f"{number}", await plain.children(f"{number}"))
        committed = (await read_record(plain, final)).committed
        found.append(await contents(plain, final) if committed else None)
    assert number > 10
    # A hierarchical bucket is decided one request before it is published.
    allowed = [files_of("old")] if replace else [None, files_of("new")]
    assert all(one in allowed for one in found)
    assert found[0] == allowed[0]


async def test_of_two_writers_one_is_told_who_won(gcs_bucket, opened):
    strategies = [await opened(gcs_bucket).commit_strategy() for _ in range(2)]
    found = await asyncio.gather(
        *(save(strategy, "7", "new") for strategy in strategies), return_exceptions=True
    )
    winners = [record for record in found if not isinstance(record, Exception)]
    losers = [error for error in found if isinstance(error, errors.CommitConflictError)]
    assert len(winners) == len(losers) == 1
    assert winners[0].attempt in str(losers[0])


async def test_a_prefix_that_is_an_object_is_foreign(gcs_bucket, opened):
    backend = opened(gcs_bucket)
    await backend.put("7", b"an object")
    with pytest.raises(errors.DestinationOccupiedError):
        await save(await backend.commit_strategy(), "7", "new")
    assert await backend.get("7") == b"an object"
