"""A copy is whole or not there, and the source is never touched."""

import asyncio
import contextlib
import itertools

import pytest

from holdfast_storage import errors
from holdfast_storage.commit import copy_checkpoint, open_committed, read_record
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash
from holdfast_storage.testing.history import History, files_of
from holdfast_storage.testing.tables import TableBackend


@pytest.fixture
async def source():
    store = TableBackend()
    await History("run/7").save(store, "A")
    return store


@pytest.fixture(params=[{}, {"rename": True, "exchange": True}, {"decided": True}])
def target(request):
    store = TableBackend(**request.param)
    store.root = "table://target"
    return store


async def files_at(store, final):
    area = await open_committed(store, final)
    return {name: await area.get(name) for name in files_of("A")}


async def test_a_copy_holds_what_the_source_holds(source, target):
    await copy_checkpoint(source, "run/7", target, "copies/one")
    assert await files_at(target, "copies/one") == files_of("A")


async def test_a_copy_replaces_only_when_asked(source, target):
    await History("copies/one").save(target, "old")
    with pytest.raises(errors.CommitConflictError):
        await copy_checkpoint(source, "run/7", target, "copies/one")
    assert await files_at(target, "copies/one") == files_of("old")
    await copy_checkpoint(source, "run/7", target, "copies/one", replace=True)
    assert await files_at(target, "copies/one") == files_of("A")


@pytest.mark.parametrize("place", ["run/7", "run/7/inside", "run"])
async def test_a_copy_onto_or_into_itself_is_refused(source, place):
    before = dict(source.objects)
    with pytest.raises(ValueError, match="itself|in the other"):
        await copy_checkpoint(source, "run/7", source, place)
    assert source.objects == before


async def test_nothing_foreign_is_replaced(source, target):
    await target.put("copies/one/notes", b"mine")
    with pytest.raises(errors.DestinationOccupiedError):
        await copy_checkpoint(source, "run/7", target, "copies/one", replace=True)
    assert list(target.objects) == ["copies/one/notes"]


async def test_an_absent_source_and_orbaxs_are_told(source, target):
    with pytest.raises(errors.CheckpointNotFoundError):
        await copy_checkpoint(source, "run/8", target, "copies/one")
    await source.put("run/9/_CHECKPOINT_METADATA", b"{}")
    with pytest.raises(errors.UnsupportedOperationError, match="load it and save it"):
        await copy_checkpoint(source, "run/9", target, "copies/one")
    assert not target.objects


async def test_a_damaged_source_leaves_the_target_as_it_was(source, target):
    key = next(key for key in source.objects if key.endswith("sub/b"))
    await source.put(key, bytes(len(files_of("A")["sub/b"])))
    with pytest.raises(errors.DamagedCheckpointError, match="sub/b"):
        await copy_checkpoint(source, "run/7", target, "copies/one")
    assert not (await read_record(target, "copies/one")).committed
    assert not [key for key in target.objects if "attempt" in key]


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE])
async def test_a_fault_at_any_call_leaves_the_whole_copy_or_none(source, fault):
    before = dict(source.objects)
    for number in itertools.count(1):
        target = TableBackend()
        target.root = "table://target"
        view = FaultyBackend(target, {number: fault})
        with contextlib.suppress(SimulatedCrash, BaseExceptionGroup, errors.StorageError):
            await copy_checkpoint(source, "run/7", view, "copies/one")
        assert source.objects == before
        if (await read_record(target, "copies/one")).committed:
            assert await files_at(target, "copies/one") == files_of("A")
        await copy_checkpoint(source, "run/7", target, "copies/one", replace=True)
        assert await files_at(target, "copies/one") == files_of("A")
        if len(view.calls) < number:
            return


async def test_bytes_in_memory_are_bounded(source, target):
    held, most = 0, 0

    class Counting(FaultyBackend):
        async def get(self, key, *, byte_range=None):
            nonlocal held, most
            data = await super().get(key, byte_range=byte_range)
            if "attempt" in key and key.endswith(("/a", "/b")):
                held += len(data)
                most = max(most, held)
                await asyncio.sleep(0.01)
                held -= len(data)
            return data

    largest = max(len(data) for data in files_of("A").values())
    await copy_checkpoint(Counting(source), "run/7", target, "copies/one", bytes_at_once=1)
    assert 0 < most <= largest
