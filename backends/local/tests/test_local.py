"""The local backend: the shared guarantees, then what only a file system can do to it."""

import asyncio
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from holdfast_local import LocalBackend, folders, open_backend, syscalls
from holdfast_storage import IfAbsent, IfVersion, errors
from holdfast_storage.commit import open_committed
from holdfast_storage.testing.backend_tests import StorageBackendTests
from holdfast_storage.testing.commit_tests import CommitTests
from holdfast_storage.testing.trash_tests import TrashFaultTests


def without_renameat2(monkeypatch):
    monkeypatch.setattr(syscalls, "_renameat2", lambda: None)


def without_exchange(monkeypatch):
    """A file system that knows NOREPLACE and not EXCHANGE, as some network ones."""
    real = syscalls.renameat2
    refuse = lambda a, b, flags: flags != syscalls.EXCHANGE and real(a, b, flags)  # noqa: E731
    monkeypatch.setattr(folders, "renameat2", refuse)


class TestLocal(StorageBackendTests):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(str(tmp_path / "root"))


class TestLocalWithoutRenameat2(StorageBackendTests):
    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        without_renameat2(monkeypatch)
        return LocalBackend(str(tmp_path / "root"))


class TestCommit(CommitTests):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(str(tmp_path / "root"))


class TestCommitWithoutRenameat2(CommitTests):
    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        without_renameat2(monkeypatch)
        return LocalBackend(str(tmp_path / "root"))


class TestCommitWithoutExchange(CommitTests):
    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        without_exchange(monkeypatch)
        return LocalBackend(str(tmp_path / "root"))


class TestTrash(TrashFaultTests):
    @pytest.fixture
    def backend(self, tmp_path):
        return LocalBackend(str(tmp_path / "root"))


class TestTrashWithoutExchange(TrashFaultTests):
    @pytest.fixture
    def backend(self, tmp_path, monkeypatch):
        without_exchange(monkeypatch)
        return LocalBackend(str(tmp_path / "root"))


async def save(backend, final, data=b"x", *, replace=False):
    strategy = await backend.commit_strategy()
    txn = await strategy.begin(final)
    area = strategy.area(txn)
    try:
        await area.child("state").put("file", data)
        entries = await strategy.seal(txn, area)
        return await strategy.commit(txn, entries, replace=replace)
    except errors.StorageError:
        await strategy.abort(txn)
        raise


@pytest.fixture
def calls(monkeypatch):
    """The real system calls that order matters for, recorded as they happen."""
    seen = []

    def path_of(descriptor):
        return os.readlink(f"/proc/self/fd/{descriptor}")

    def record(module, name, describe):
        real = getattr(module, name)

        def call(*args, **kwargs):
            seen.append((name, describe(*args)))
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    record(os, "fsync", path_of)
    record(os, "replace", lambda source, target: str(target))
    record(os, "link", lambda source, target: str(target))
    record(folders, "renameat2", lambda source, target, flags: str(target))
    return seen


async def test_files_are_synced_before_the_rename_and_the_parent_after(tmp_path, calls):
    backend = LocalBackend(str(tmp_path))
    await save(backend, "7")
    names = [(name, os.path.relpath(path, tmp_path)) for name, path in calls]
    rename = names.index(("renameat2", "7"))
    before, after = names[:rename], names[rename + 1 :]
    staging = next(path.split("/")[0] for _, path in before if ".attempt-" in path)
    for part in ("state/file", "_MANIFEST.jsonl", "_COMMIT.json", "state", ""):
        assert ("fsync", os.path.normpath(f"{staging}/{part}")) in before or any(
            name == "fsync" and part and os.path.basename(part) in path for name, path in before
        ), part
    last_sync = max(i for i, (name, _) in enumerate(before) if name == "fsync")
    written = [i for i, (name, path) in enumerate(before) if name in ("replace", "link")]
    assert last_sync > max(written)
    assert ("fsync", ".") in after


async def test_a_put_syncs_the_file_then_shows_it_then_syncs_the_folder(tmp_path, calls):
    backend = LocalBackend(str(tmp_path))
    await backend.put("a", b"x")
    order = [name for name, _ in calls]
    assert order == ["fsync", "replace", "fsync"]
    assert calls[2][1] == str(tmp_path)
    calls.clear()
    await backend.put("b", b"x", condition=IfAbsent())
    assert [name for name, _ in calls] == ["fsync", "link", "fsync"]


async def test_new_folders_are_durable_in_their_parents(tmp_path, calls):
    await LocalBackend(str(tmp_path / "new" / "root")).put("a/b", b"x")
    synced = {path for name, path in calls if name == "fsync"}
    for folder in (tmp_path, tmp_path / "new", tmp_path / "new" / "root"):
        assert str(folder) in synced


async def test_a_rename_that_failed_but_happened_is_a_success(tmp_path, monkeypatch):
    """A network file system may lose the reply of a rename that it carried out."""
    real = syscalls.renameat2

    def lose(source, target, flags):
        real(source, target, flags)
        raise OSError(errno.EIO, "lost reply")

    monkeypatch.setattr(folders, "renameat2", lose)
    backend = LocalBackend(str(tmp_path))
    await save(backend, "7", b"new")
    area = await open_committed(backend, "7")
    assert await area.child("state").get("file") == b"new"
    await save(backend, "7", b"newer", replace=True)
    area = await open_committed(backend, "7")
    assert await area.child("state").get("file") == b"newer"


async def test_a_rename_that_failed_is_a_failure_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(source, target, flags):
        raise OSError(errno.EIO, "broken")

    backend = LocalBackend(str(tmp_path))
    monkeypatch.setattr(folders, "renameat2", fail)
    with pytest.raises(errors.StorageError, match="broken|Input/output"):
        await save(backend, "7")
    monkeypatch.undo()
    await save(backend, "7", b"again")


async def test_another_device_is_said_in_words(tmp_path, monkeypatch):
    def cross(source, target, flags):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(folders, "renameat2", cross)
    with pytest.raises(errors.StorageError, match="different devices"):
        await save(LocalBackend(str(tmp_path)), "7")


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root and the permission to mount")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


async def test_a_full_disk_is_said_and_the_earlier_checkpoint_stays(small_disk):
    backend = LocalBackend(str(small_disk))
    await save(backend, "1", b"a" * 300_000)
    with pytest.raises(
        errors.StorageFullError,
        match=r"disk is full \(900,000 bytes were to be written, [\d,]+ bytes are free\)",
    ):
        await save(backend, "2", b"b" * 900_000)
    with pytest.raises(errors.StorageFullError):
        await save(backend, "1", b"b" * 900_000, replace=True)
    assert sorted(os.listdir(small_disk)) == ["1"]
    area = await open_committed(backend, "1")
    assert len(await area.child("state").get("file")) == 300_000


async def test_a_read_only_tree_can_be_read_and_refuses_to_be_written(small_disk):
    backend = LocalBackend(str(small_disk))
    await save(backend, "1")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        area = await open_committed(backend, "1")
        assert await area.child("state").get("file") == b"x"
        for call in (save(backend, "2"), backend.delete_prefix("1"), backend.put("k", b"")):
            with pytest.raises(errors.StoragePermissionError, match="Read-only"):
                await call
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


async def test_no_lock_file_and_no_temporary_file_is_left(tmp_path):
    backend = LocalBackend(str(tmp_path))
    await save(backend, "1")
    version = await backend.put("k", b"1")
    await backend.put("k", b"2", condition=IfVersion(version))
    names = [name for _, _, found in os.walk(tmp_path) for name in found]
    assert not [name for name in names if "lock" in name or name.startswith(".put-")]


async def test_puts_that_are_killed_leave_whole_objects_only(tmp_path):
    script = f"""
import asyncio, itertools
from holdfast_local import LocalBackend
async def main():
    backend = LocalBackend({str(tmp_path)!r})
    print("ready", flush=True)
    for n in itertools.count():
        await backend.put(f"k{{n % 3}}", bytes([n % 256]) * 200_000)
asyncio.run(main())
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    process.stdout.readline()
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    backend = LocalBackend(str(tmp_path))
    found = [info async for info in backend.walk("")]
    assert found
    for info in found:
        data = await backend.get(info.key)
        assert len(data) == 200_000
        assert len(set(data)) == 1
    await backend.abort_uploads("", older_than=0)
    assert sorted(os.listdir(tmp_path)) == [info.key for info in found]


async def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("x")
    root = tmp_path / "root"
    backend = LocalBackend(str(root))
    await backend.put("a/b", b"x")
    (root / "a" / "link").symlink_to(tmp_path / "outside")
    assert [info.key async for info in backend.walk("a")] == ["a/b"]
    await backend.delete_prefix("a")
    assert (tmp_path / "outside" / "precious").exists()


def test_a_relative_root_and_settings_are_refused():
    with pytest.raises(errors.InvalidURLError, match="absolute"):
        LocalBackend("runs")
    with pytest.raises(errors.InvalidURLError, match="no settings"):
        open_backend("file:///tmp", {"x": 1})


async def test_a_name_that_is_too_long_is_said(tmp_path):
    with pytest.raises(errors.InvalidKeyError, match="too long"):
        await LocalBackend(str(tmp_path)).put("x" * 300, b"")


async def test_the_event_loop_is_not_blocked_by_the_disk(tmp_path, monkeypatch):
    backend = LocalBackend(str(tmp_path))
    turns = 0

    async def count():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0.001)

    counter = asyncio.ensure_future(count())
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (time.sleep(0.1), real(descriptor))[1])
    await backend.put("k", b"x")
    counter.cancel()
    assert turns > 10
