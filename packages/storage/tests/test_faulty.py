"""The wrapper that stops an actor at one numbered call."""

import asyncio
import uuid

import pytest

from holdfast_storage import errors
from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash


def fresh():
    return MemoryBackend(f"memory://faulty-{uuid.uuid4().hex}/x")


async def stored(backend):
    return [info.key async for info in backend.walk("")]


class TestFaultyWithoutFaults(StorageBackendTests):
    """The wrapper itself changes nothing."""

    @pytest.fixture
    def backend(self):
        return FaultyBackend(fresh())


async def test_faults_happen_where_they_are_asked_for():
    inner = fresh()
    faulty = FaultyBackend(inner, {1: Fault.REFUSE, 2: Fault.LOSE_REPLY, 3: Fault.DELAY})
    for number in (1, 2):
        with pytest.raises(errors.TransientStorageError):
            await faulty.put(f"k{number}", b"x")
    await faulty.put("k3", b"x")
    assert await stored(inner) == ["k2", "k3"]
    assert [(call.number, call.operation, call.key) for call in faulty.calls] == [
        (1, "put", "k1"),
        (2, "put", "k2"),
        (3, "put", "k3"),
    ]


async def test_nothing_happens_after_a_crash():
    inner = fresh()
    faulty = FaultyBackend(inner, {2: Fault.CRASH})
    await faulty.put("a", b"")
    for call in (faulty.put("b", b""), faulty.get("a"), faulty.delete("a")):
        with pytest.raises(SimulatedCrash):
            await call
    assert await stored(inner) == ["a"]


async def test_a_paused_call_has_no_effect_until_it_is_resumed():
    inner = fresh()
    faulty = FaultyBackend(inner, {1: Fault.PAUSE})
    writing = asyncio.ensure_future(faulty.put("a", b"late"))
    await faulty.reached.wait()
    assert await stored(inner) == []
    await inner.put("a", b"meanwhile")
    faulty.resume.set()
    await writing
    assert await inner.get("a") == b"late"


async def test_reads_are_numbered_only_if_asked():
    inner = fresh()
    await inner.put("a", b"")
    for reads, numbered in ((False, []), (True, ["get", "stat", "walk", "children"])):
        faulty = FaultyBackend(inner, reads=reads)
        await faulty.get("a")
        await faulty.stat("a")
        await stored(faulty)
        await faulty.children("")
        assert [call.operation for call in faulty.calls] == numbered


async def test_every_removal_of_a_prefix_is_a_point_of_its_own():
    inner = fresh()
    for name in ("p/a", "p/b", "p/c"):
        await inner.put(name, b"")
    faulty = FaultyBackend(inner, {2: Fault.CRASH})
    with pytest.raises(SimulatedCrash):
        await faulty.delete_prefix("p")
    assert len(await stored(inner)) == 2


async def test_the_commit_strategy_acts_through_the_wrapper():
    inner = fresh()
    faulty = FaultyBackend(inner)
    strategy = await faulty.commit_strategy()
    assert type(strategy) is type(await inner.commit_strategy())
    txn = await strategy.begin("final")
    await strategy.abort(txn)
    await strategy.sweep("")
    assert {"put", "delete", "abort"} <= {call.operation for call in faulty.calls}


async def test_unfinished_uploads_are_aborted_in_the_store_itself():
    class WithUploads(MemoryBackend):
        async def abort_uploads(self, prefix, *, older_than):
            return 3

    faulty = FaultyBackend(WithUploads("memory://faulty/uploads"))
    assert await faulty.abort_uploads("", older_than=0) == 3
