"""The store inside this process."""

import asyncio
import os
import subprocess
import sys
import uuid
import warnings

import pytest

from holdfast_storage import IfAbsent, IfVersion, errors, open_backend, scratch
from holdfast_storage import memory as module
from holdfast_storage.memory import MemoryBackend
from holdfast_storage.testing.backend_tests import StorageBackendTests


def fresh():
    return MemoryBackend(f"memory://test-{uuid.uuid4().hex}/x")


class TestMemory(StorageBackendTests):
    @pytest.fixture
    def backend(self):
        return fresh()


async def test_the_same_url_is_the_same_store_and_settings_are_refused():
    url = f"memory://test-{uuid.uuid4().hex}/a"
    await open_backend(url).put("k", b"x")
    assert await open_backend(url).get("k") == b"x"
    assert await MemoryBackend(url).get("k") == b"x"
    with pytest.raises(errors.InvalidURLError, match="takes no settings"):
        open_backend(url, {"region": "x"})


async def test_a_store_is_seen_from_above():
    name = f"memory://test-{uuid.uuid4().hex}"
    await MemoryBackend(f"{name}/a/b").put("k", b"x")
    assert await MemoryBackend(f"{name}/a").get("b/k") == b"x"
    assert (await MemoryBackend(name).children("")).prefixes == ("a",)


async def test_a_folder_without_objects_stands_in_no_way():
    backend = fresh()
    await backend.put("a/b/c", b"")
    await backend.delete("a/b/c")
    await backend.put("a/b", b"1", condition=IfAbsent())
    assert await backend.get("a/b") == b"1"


async def test_any_legal_name_is_a_key():
    backend = fresh()
    names = [".holdfast-put-k", "put", "objects", "🔑" * 63]
    for name in names:
        await backend.put(name, name.encode())
    assert [info.key async for info in backend.walk("")] == sorted(names)


async def test_what_tensorstore_wrote_can_be_swapped():
    import tensorstore

    backend = fresh()
    target = backend.kv_target("")
    context = tensorstore.Context(dict(target.context))
    store = await tensorstore.KvStore.open(dict(target.spec), context=context)
    await store.write("k", b"one")
    old = (await backend.stat("k")).version
    await backend.put("k", b"two", condition=IfVersion(old))
    with pytest.raises(errors.PreconditionFailedError):
        await backend.put("k", b"three", condition=IfVersion(old))
    assert bytes((await store.read("k")).value) == b"two"


async def test_contents_of_one_length_written_at_once_have_versions_of_their_own():
    backend = fresh()
    versions = [await backend.put("k", b"x") for _ in range(200)]
    assert len(set(versions)) == 200


async def test_a_full_memory_is_told_and_leaves_nothing(monkeypatch, tmp_path):
    backend = fresh()
    await backend.put("before", b"")
    full = tmp_path / "put"
    full.symlink_to("/dev/full")
    with monkeypatch.context() as patched:
        patched.setattr(module._Stores, "temporary", lambda _: full)
        with pytest.raises(errors.StorageFullError, match="full"):
            await backend.put("k", b"x")
    assert not full.is_symlink()
    assert [info.key async for info in backend.walk("")] == ["before"]


def test_a_forked_child_has_a_store_of_its_own():
    backend = fresh()
    asyncio.run(backend.put("k", b"parent"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking with threads may deadlock is the point
        pid = os.fork()
    if pid == 0:
        try:
            asyncio.run(backend.put("k", b"child", condition=IfAbsent()))
            folder = module._stores._folder
            scratch._remove(folder.path, os.getpid(), folder._held)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert asyncio.run(backend.get("k")) == b"parent"


def test_what_a_killed_process_left_in_memory_is_removed_by_the_next():
    script = """
import os, holdfast_storage as hs
from holdfast_storage.memory import _stores
hs.get_loop().run(hs.open_backend("memory://a/b").put("k", b"x"))
print(_stores.objects().parent, flush=True)
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
