import os
import subprocess
import sys
import uuid

import pytest

from holdfast_storage import errors, open_backend
from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash


def fresh():
    return MemoryBackend(f"memory://test-{uuid.uuid4().hex}/x")


class TestMemory(StorageBackendTests):
    @pytest.fixture
    def backend(self):
        return fresh()


class TestFaultyWithoutFaults(StorageBackendTests):
    """The wrapper itself changes nothing."""

    @pytest.fixture
    def backend(self):
        return FaultyBackend(fresh())


async def test_the_same_url_is_the_same_store_and_settings_are_refused():
    url = f"memory://test-{uuid.uuid4().hex}/a"
    await open_backend(url).put("k", b"x")
    assert await open_backend(url).get("k") == b"x"
    assert await MemoryBackend(url).get("k") == b"x"
    with pytest.raises(errors.InvalidURLError, match="takes no settings"):
        open_backend(url, {"region": "x"})


async def test_faults_happen_where_they_are_asked_for():
    inner = fresh()
    faulty = FaultyBackend(inner, {1: Fault.REFUSE, 2: Fault.LOSE_REPLY, 3: Fault.DELAY})
    for number in (1, 2):
        with pytest.raises(errors.TransientStorageError):
            await faulty.put(f"k{number}", b"x")
    await faulty.put("k3", b"x")
    assert [info.key async for info in inner.walk("")] == ["k2", "k3"]
    assert [(call.number, call.key) for call in faulty.calls] == [(1, "k1"), (2, "k2"), (3, "k3")]


async def test_nothing_happens_after_a_crash():
    inner = fresh()
    faulty = FaultyBackend(inner, {2: Fault.CRASH})
    await faulty.put("a", b"")
    with pytest.raises(SimulatedCrash):
        await faulty.put("b", b"")
    with pytest.raises(SimulatedCrash):
        await faulty.get("a")
    assert [info.key async for info in inner.walk("")] == ["a"]


def test_what_a_killed_process_left_in_memory_is_removed_by_the_next():
    script = """
import os, holdfast_storage as hs
from holdfast_storage.memory import _stores
hs.get_loop().run(hs.open_backend("memory://a/b").put("k", b"x"))
print(_stores.path(), flush=True)
"""
    killed = subprocess.run(
        [sys.executable, "-c", script + "os.kill(os.getpid(), 9)"],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    assert os.path.isdir(killed)
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.strip()
    for directory in (killed, ended):
        assert not os.path.exists(directory)
        assert not os.path.exists(f"{directory}.alive")
