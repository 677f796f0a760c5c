"""Whole folders: what reaches the disk and in which order, and what may be in the way."""

import errno
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from holdfast_local import LocalBackend, folders, syscalls
from holdfast_metadata import ATTEMPT_FILE, COMMIT_FILE
from holdfast_storage import errors


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(str(tmp_path))


@pytest.fixture
def mount(tmp_path):
    """Mounts a file system below the test's folder, if this user may."""
    mounted = []

    def run(kind, where, options):
        where.mkdir(exist_ok=True)
        command = ["mount", "-t", kind, "-o", options, kind, str(where)]
        if (
            os.geteuid() != 0
            or subprocess.run(command, capture_output=True, check=False).returncode
        ):
            pytest.skip(f"mounting {kind} needs root and the permission to mount")
        mounted.append(where)
        return where

    yield run
    for where in reversed(mounted):
        subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def nobody():
    """A folder of a user without rights, whom permission bits bind; the test runs as that user."""
    with tempfile.TemporaryDirectory() as folder:
        if os.geteuid() != 0:
            yield Path(folder)
            return
        os.chown(folder, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            os.seteuid(0)


# --- durability --------------------------------------------------------------------------

SAVE = """
import asyncio, sys
from holdfast_local import LocalBackend
async def main():
    strategy = await LocalBackend(sys.argv[1]).commit_strategy()
    txn = await strategy.begin("7")
    area = strategy.area(txn)
    for name in ("a", "b", "c"):
        await area.child("state").put(name, b"x")
    await strategy.commit(txn, await strategy.seal(txn, area))
asyncio.run(main())
"""
CALL = re.compile(r"(?P<pid>\d+) +(?P<name>\w+)\((?P<args>.*)")
RESUMED = re.compile(r"(?P<pid>\d+) +<\.\.\. (?P<name>\w+) resumed>")


def traced(lines):
    """System calls in the order of their starts, with when each began and ended."""
    calls, open_calls = [], {}
    for now, line in enumerate(lines):
        if found := RESUMED.match(line):
            open_calls.pop(found["pid"]).end = now
        elif found := CALL.match(line):
            # A descriptor is shown with its path; so is the folder of relative names.
            paths = re.findall(r'"(/[^"]*)"', found["args"])
            paths = paths or re.findall(r"<(/[^>]*)>", found["args"])
            call = SimpleNamespace(name=found["name"], paths=paths, start=now, end=now)
            calls.append(call)
            if "<unfinished" in line:
                open_calls[found["pid"]] = call
    return calls


def test_the_kernel_is_asked_to_sync_everything_before_the_rename_and_the_parent_after(tmp_path):
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("strace is not installed")
    root, log = tmp_path / "root", tmp_path / "log"
    wanted = "fsync,fdatasync,rename,renameat,renameat2,link,linkat"
    command = [strace, "-f", "-y", "-s", "4096", "-o", str(log), "-e", f"trace={wanted}"]
    done = subprocess.run(
        [*command, sys.executable, "-c", SAVE, str(root)], capture_output=True, check=False
    )
    if done.returncode and b"ptrace" in done.stderr:
        pytest.skip("this machine lets nobody trace")
    assert done.returncode == 0, done.stderr.decode()
    seen = traced(log.read_text().splitlines())
    calls = [call for call in seen if any(str(root) in path for path in call.paths)]
    (decision,) = [c for c in calls if c.name == "renameat2" and c.paths[-1] == f"{root}/7"]
    before = [call for call in calls if call.end < decision.start]
    staging = decision.paths[0]
    synced = {call.paths[0]: call for call in before if "sync" in call.name}
    for part in ("/state/a", "/state/b", "/state/c", "/state", ""):
        assert staging + part in synced, part
    # The protocol's files are synced before they get their names, and their folder after.
    for name in (COMMIT_FILE, "_MANIFEST.jsonl"):
        ends_there = [call for call in before if call.paths[-1] == f"{staging}/{name}"]
        (named,) = [call for call in ends_there if "sync" not in call.name]
        assert synced[named.paths[0]].end < named.start
        assert synced[staging].start > named.end
    after = [call for call in calls if call.start > decision.end]
    assert any("sync" in call.name and call.paths[0] == str(root) for call in after)


async def test_a_file_that_vanishes_while_it_is_synced_fails_nothing(tmp_path):
    """The temporary file of a heartbeat, that of another process, or what a sweep took."""
    for name in ("a", "b", f".put-{'0' * 32}"):
        (tmp_path / name).write_text("x")
    asked = []

    def run(function, paths):
        asked.extend(os.path.basename(path) for path in paths)
        (tmp_path / "b").unlink()
        for path in paths:
            function(path)

    folders.sync(str(tmp_path), run)
    assert sorted(asked) == ["a", "b"]


async def test_what_is_no_file_stops_no_sync(backend, tmp_path):
    await backend.put("f/a", b"")
    os.mkfifo(tmp_path / "f" / "pipe")
    (tmp_path / "f" / "dangling").symlink_to("nowhere")
    await backend.sync_prefix("f")
    await backend.sync_prefix("absent")


async def test_what_cannot_be_listed_is_not_reported_as_synced_or_removed(nobody):
    backend = LocalBackend(str(nobody))
    for key in (f"f/{ATTEMPT_FILE}", "f/a", "f/closed/b"):
        await backend.put(key, b"")
    os.chmod(nobody / "f" / "closed", 0)
    with pytest.raises(errors.StoragePermissionError):
        await backend.sync_prefix("f")
    with pytest.raises(errors.StoragePermissionError):
        await backend.delete_prefix("f")
    assert (nobody / "f" / ATTEMPT_FILE).exists()
    os.chmod(nobody / "f" / "closed", 0o700)
    await backend.delete_prefix("f")
    assert os.listdir(nobody) == []


async def test_a_folder_without_write_permission_is_read_and_not_written(nobody):
    backend = LocalBackend(str(nobody))
    await backend.put("f/a", b"x")
    os.chmod(nobody / "f", 0o500)
    assert await backend.get("f/a") == b"x"
    for call in (backend.put("f/b", b""), backend.delete("f/a"), backend.delete_prefix("f")):
        with pytest.raises(errors.StoragePermissionError):
            await call
    assert [info.key async for info in backend.walk("")] == ["f/a"]
    os.chmod(nobody / "f", 0o700)


async def test_a_file_system_that_cannot_sync_folders_still_saves(backend, monkeypatch):
    real, refused = os.fsync, []

    def fsync(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            refused.append(descriptor)
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    await backend.put("f/a", b"x")
    await backend.sync_prefix("f")
    await backend.rename_prefix("f", "g")
    assert await backend.get("g/a") == b"x"
    assert refused


async def test_a_file_that_cannot_be_synced_is_told(backend, monkeypatch):
    await backend.put("f/a", b"x")

    def fsync(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(errors.StorageError, match="Input/output"):
        await backend.sync_prefix("f")


# --- moving and exchanging ---------------------------------------------------------------


@pytest.fixture(params=["renameat2", "plain rename"])
def either_rename(request, monkeypatch):
    if request.param == "plain rename":
        monkeypatch.setattr(syscalls, "_renameat2", lambda: None)


async def test_a_move_makes_no_folder(backend, tmp_path, either_rename):
    await backend.put("f/a", b"x")
    with pytest.raises(errors.ObjectNotFoundError):
        await backend.rename_prefix("f", "gone/f")
    assert os.listdir(tmp_path) == ["f"]


async def test_a_move_replaces_not_even_an_empty_folder(backend, tmp_path, either_rename):
    await backend.put("f/a", b"x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for there in ("empty", "link"):
        with pytest.raises(errors.ObjectExistsError):
            await backend.rename_prefix("f", there)
    assert await backend.get("f/a") == b"x"


async def test_two_devices_are_both_named(backend, tmp_path, mount, either_rename):
    mount("tmpfs", tmp_path / "other", "size=1m")
    await backend.put("f/a", b"x")
    with pytest.raises(errors.StorageError, match="different devices") as caught:
        await backend.rename_prefix("f", "other/f")
    for path in ("f", "other/f"):
        assert repr(str(tmp_path / path)) in str(caught.value)
    assert caught.value.__cause__.errno == errno.EXDEV
    assert await backend.get("f/a") == b"x"


async def test_what_lies_in_a_lower_layer_is_not_exchanged_and_that_is_said(tmp_path, mount):
    """A container's image: its folders can neither be moved nor exchanged."""
    (tmp_path / "lower" / "old").mkdir(parents=True)
    (tmp_path / "lower" / "old" / "a").write_text("old")
    upper = mount("tmpfs", tmp_path / "disk", "size=8m")
    for name in ("upper", "work"):
        (upper / name).mkdir()
    layers = f"lowerdir={tmp_path}/lower,upperdir={upper}/upper,workdir={upper}/work"
    root = mount("overlay", tmp_path / "root", f"{layers},redirect_dir=off")
    backend = LocalBackend(str(root))
    await backend.put("new/a", b"new")
    with pytest.raises(errors.UnsupportedOperationError):
        await backend.exchange_prefix("new", "old")
    assert not backend.capabilities.exchange_prefix
    with pytest.raises(errors.StorageError, match="layers of an overlay"):
        await backend.rename_prefix("old", "aside")
    assert (await backend.get("old/a"), await backend.get("new/a")) == (b"old", b"new")


# --- removing ----------------------------------------------------------------------------


async def test_the_marks_go_last(backend, monkeypatch):
    for name in (ATTEMPT_FILE, COMMIT_FILE, "a", "z/b", "_MANIFEST.jsonl"):
        await backend.put(f"f/{name}", b"")
    removed, real = [], os.unlink
    monkeypatch.setattr(os, "unlink", lambda path: (removed.append(path), real(path))[1])
    await backend.delete_prefix("f")
    assert [os.path.basename(path) for path in removed[-2:]] == [COMMIT_FILE, ATTEMPT_FILE]
    assert len(removed) == 5
    listing = await backend.children("")
    assert (listing.prefixes, listing.objects) == ((), ())


async def test_a_removal_that_is_cut_short_leaves_the_mark(backend, tmp_path, monkeypatch):
    for name in (ATTEMPT_FILE, "a", "z/b", f"attempt-1/{ATTEMPT_FILE}", "attempt-1/c"):
        await backend.put(f"f/{name}", b"")
    real = os.unlink

    def unlink(path):
        if path.endswith("/b"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(errors.StorageError):
            await backend.delete_prefix("f")
    assert (tmp_path / "f" / ATTEMPT_FILE).exists()
    await backend.delete_prefix("f")
    assert os.listdir(tmp_path) == []


async def test_removing_a_link_to_a_folder_removes_the_link(backend, tmp_path):
    precious = tmp_path / "outside" / "precious"
    precious.parent.mkdir()
    precious.write_text("x")
    (tmp_path / "step").symlink_to(precious.parent)
    await backend.delete_prefix("step")
    assert precious.exists()
    assert not (tmp_path / "step").is_symlink()


async def test_removing_an_object_as_a_prefix_removes_nothing(backend):
    await backend.put("k", b"x")
    await backend.delete_prefix("k")
    assert await backend.get("k") == b"x"


async def test_a_file_that_nfs_keeps_while_it_is_open_fails_no_removal(backend, tmp_path):
    await backend.put("f/a", b"x")
    (tmp_path / "f" / ".nfs0001").write_text("still open elsewhere")
    await backend.delete_prefix("f")
    assert os.listdir(tmp_path / "f") == [".nfs0001"]


async def test_leftovers_of_killed_puts_go_once_they_are_old(backend, tmp_path):
    leftover = f".put-{'0' * 32}"
    await backend.put("run/step/a", b"")
    for folder in ("run", "run/step"):
        (tmp_path / folder / leftover).write_text("x")
    (tmp_path / "run" / f".put-{'1' * 32}").mkdir()
    (tmp_path / "run" / f".put-{'1' * 32}" / ATTEMPT_FILE).write_text("x")
    (tmp_path / "run" / ".put-by-somebody-else").write_text("x")
    assert await backend.abort_uploads("run", older_than=3600) == 0
    assert await backend.abort_uploads("run", older_than=0) == 3
    assert sorted(os.listdir(tmp_path / "run")) == [".put-by-somebody-else", "step"]
    assert os.listdir(tmp_path / "run" / "step") == ["a"]
    assert await backend.abort_uploads("absent", older_than=0) == 0


async def test_a_link_that_leads_nowhere_hides_nothing_beside_it(tmp_path):
    backend = LocalBackend(str(tmp_path))
    await backend.put("a/x", b"")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a" / "loop").symlink_to("loop")
    (tmp_path / "a" / "dangling").symlink_to("nothing")
    (tmp_path / "a" / "linked").symlink_to("x")
    assert (await backend.children("")).prefixes == ("a",)
    assert [info.key for info in (await backend.children("a")).objects] == ["a/linked", "a/x"]
    assert (await backend.names_in(["a"]))["a"].objects == {"linked", "x"}
    assert [info.key async for info in backend.walk("")] == ["a/linked", "a/x"]
