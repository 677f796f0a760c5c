"""Single files: what a race, a lost reply or an odd file system may do to a put."""

import errno
import os
import threading

import pytest

from holdfast_local import LocalBackend, chain, files, network
from holdfast_storage import IfAbsent, IfVersion, errors


@pytest.fixture
def backend(tmp_path):
    return LocalBackend(str(tmp_path))


def once(monkeypatch, name, act, *, when=lambda *args: True):
    """Runs `act` in the place of the first call of `os.<name>`, which is handed to it."""
    real = getattr(os, name)
    due = [True]

    def call(*args, **kwargs):
        if due and when(*args):
            due.clear()
            return act(real, *args, **kwargs)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, call)


def left_in(folder):
    return sorted(name for name in os.listdir(folder) if name.startswith(".put-"))


class Stopped(BaseException):
    """The writer stops here and goes on much later."""


def swap_without_publishing(path, data, monkeypatch):
    """Decides a swap and stops; returns what it would have done next."""
    held = []

    def hold(real, source, target):
        held.append((real, source, target))
        raise Stopped

    with monkeypatch.context() as patch:
        once(patch, "replace", hold)
        patch.setattr(files, "_discard", lambda path: None)
        with pytest.raises(Stopped):
            files.swap(path, data, chain.version_of(chain.current(path)))
    real, source, target = held[0]
    return lambda: real(source, target)


async def test_a_late_publisher_of_a_swap_shows_nothing_old(backend, tmp_path, monkeypatch):
    first = await backend.put("k", b"first")
    publish = swap_without_publishing(str(tmp_path / "k"), b"second", monkeypatch)
    assert await backend.get("k") == b"second"
    second = (await backend.stat("k")).version
    with pytest.raises(errors.PreconditionFailedError):
        await backend.put("k", b"other", condition=IfVersion(first))
    await backend.put("k", b"third", condition=IfVersion(second))
    publish()
    assert await backend.get("k") == b"third"
    assert (await backend.stat("k")).size == 5
    assert [info.size async for info in backend.walk("")] == [5]
    assert [info.size for info in (await backend.children("")).objects] == [5]


async def test_a_reader_that_a_late_publisher_overtakes_reads_nothing_old(
    backend, tmp_path, monkeypatch
):
    """The publisher wakes up in the instant before the file is opened."""
    await backend.put("k", b"first")
    publish = swap_without_publishing(str(tmp_path / "k"), b"second", monkeypatch)
    third = await backend.put("k", b"third", condition=IfVersion((await backend.stat("k")).version))

    def open_late(real, path, flags, *args):
        publish()
        return real(path, flags, *args)

    once(monkeypatch, "open", open_late, when=lambda path, *_: path == str(tmp_path / "k"))
    info, data = await backend.read("k")
    assert (data, info.version) == (b"third", third)


async def test_a_put_returns_its_own_version_and_not_that_of_a_faster_writer(
    backend, tmp_path, monkeypatch
):
    def link(real, source, target):
        real(source, target)
        files.swap(target, b"other", chain.version_of(os.stat(target)))

    once(monkeypatch, "link", link)
    mine = await backend.put("k", b"mine", condition=IfAbsent())
    with pytest.raises(errors.PreconditionFailedError):
        await backend.put("k", b"mine again", condition=IfVersion(mine))
    assert await backend.get("k") == b"other"


async def test_a_put_that_was_deleted_at_once_has_succeeded(backend, tmp_path, monkeypatch):
    def replace(real, source, target):
        real(source, target)
        os.unlink(target)

    once(monkeypatch, "replace", replace)
    await backend.put("k", b"x")


async def test_coarse_times_confuse_no_chain(backend, monkeypatch):
    """Same time, same size, and inodes that are used again: no version comes back."""
    monkeypatch.setattr(files.time, "time_ns", lambda: 10**18)
    version = await backend.put("k", b"0")
    seen = {version}
    for n in range(1, 30):
        version = await backend.put("k", str(n % 10).encode(), condition=IfVersion(version))
        assert version not in seen
        seen.add(version)
        assert await backend.get("k") == str(n % 10).encode()
        assert (await backend.stat("k")).version == version


async def test_a_clock_that_was_set_back_repeats_no_version(backend, monkeypatch):
    seen = set()
    for now in (3 * 10**18, 10**18, 3 * 10**18, 10**18):
        monkeypatch.setattr(files.time, "time_ns", lambda now=now: now)
        for _ in range(10):
            seen.add((await backend.put("k", b"x", durable=False)).token)
    assert len(seen) == 40


async def test_a_file_system_that_keeps_no_later_date_repeats_no_version(backend, monkeypatch):
    """Whole seconds, and 2038 is the end: ext4 with small inodes."""
    real, second = os.utime, 10**9

    def utime(descriptor, *, ns):
        kept = min(ns[0] // second, 2**31 - 1) * second
        real(descriptor, ns=(kept, kept))

    monkeypatch.setattr(os, "utime", utime)
    seen = set()
    for now in (10**18, 3 * 10**18, 10**18):
        monkeypatch.setattr(files.time, "time_ns", lambda now=now: now)
        for _ in range(10):
            version = await backend.put("k", b"x", durable=False)
            seen.add(version.token)
            seen.add((await backend.put("k", b"y", condition=IfVersion(version))).token)
            assert await backend.get("k") == b"y"
    assert len(seen) == 60


async def test_threads_that_swap_one_record_lose_no_change(tmp_path):
    """Each through a backend of its own, as processes would."""
    path = str(tmp_path / "counter")
    await LocalBackend(str(tmp_path)).put("counter", b"0")

    def work():
        for _ in range(20):
            while True:
                file, status = chain.open_current(path)
                with file:
                    value = int(file.read())
                if files.swap(path, str(value + 1).encode(), chain.version_of(status)):
                    break

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert await LocalBackend(str(tmp_path)).get("counter") == b"80"


async def test_the_longest_name_can_be_swapped(backend):
    name = "x" * 255
    version = await backend.put(name, b"1")
    await backend.put(name, b"2", condition=IfVersion(version))
    assert await backend.get(name) == b"2"
    assert [info.key async for info in backend.walk("")] == [name]


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.EXDEV])
async def test_without_hard_links_a_create_works_and_a_swap_is_refused(
    backend, tmp_path, monkeypatch, number
):
    def refuse(source, target):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    version = await backend.put("k", b"1", condition=IfAbsent())
    with pytest.raises(errors.ObjectExistsError):
        await backend.put("k", b"2", condition=IfAbsent())
    assert backend.capabilities.compare_and_swap
    with pytest.raises(errors.UnsupportedOperationError, match="hard links"):
        await backend.put("k", b"2", condition=IfVersion(version))
    assert not backend.capabilities.compare_and_swap
    assert await backend.get("k") == b"1"
    assert os.listdir(tmp_path) == ["k"]


@pytest.mark.parametrize("what", ["put", "create", "swap: decision", "swap: publication"])
async def test_a_lost_reply_is_asked_for(backend, tmp_path, monkeypatch, what):
    """A network file system carries a link or a rename out and reports a failure."""
    kind, _, step = what.partition(": ")
    condition = {"put": None, "create": IfAbsent()}.get(kind)
    if kind == "swap":
        condition = IfVersion(await backend.put("k", b"old"))

    def lose(real, source, target):
        real(source, target)
        number = errno.EEXIST if name == "link" else errno.ENOENT
        raise OSError(number, os.strerror(number), source, None, target)

    name = "link" if kind == "create" or step == "decision" else "replace"
    once(monkeypatch, name, lose)
    version = await backend.put("k", b"new", condition=condition)
    assert await backend.get("k") == b"new"
    assert (await backend.stat("k")).version == version
    assert not left_in(tmp_path)


async def test_a_swap_that_was_decided_succeeds_even_if_it_cannot_be_published(
    backend, tmp_path, monkeypatch
):
    old = await backend.put("k", b"old")

    def fail(real, source, target):
        raise OSError(errno.EIO, "broken")

    once(monkeypatch, "replace", fail)
    new = await backend.put("k", b"new", condition=IfVersion(old))
    assert await backend.get("k") == b"new"
    assert (await backend.stat("k")).version == new
    await backend.put("k", b"newest", condition=IfVersion(new))
    assert (tmp_path / "k").read_bytes() == b"newest"
    assert not left_in(tmp_path)


@pytest.mark.parametrize("step", ["write", "fsync", "close", "link", "replace"])
async def test_a_put_that_fails_at_any_step_leaves_nothing(backend, tmp_path, monkeypatch, step):
    await backend.put("k", b"old")

    def fail(real, *args):
        if step == "close":
            real(*args)  # NFS reports at the close that the server had no room
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    once(monkeypatch, step, fail)
    condition = IfAbsent() if step == "link" else None
    key = "new" if step == "link" else "k"
    with pytest.raises(errors.StorageFullError, match=r"5 bytes were to be written, .* are free"):
        await backend.put(key, b"12345", condition=condition)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["k"]
    assert await backend.get("k") == b"old"


async def test_a_new_folder_that_cannot_be_filled_does_not_appear(backend, tmp_path, monkeypatch):
    def fail(real, descriptor):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    once(monkeypatch, "fsync", fail, when=lambda fd: "/.put-" in os.readlink(f"/proc/self/fd/{fd}"))
    with pytest.raises(errors.StorageFullError):
        await backend.put("folder/k", b"x")
    assert os.listdir(tmp_path) == []


async def test_names_of_unfinished_puts_are_refused(backend, tmp_path):
    for key in (f".put-{'0' * 32}", f"a/.next-{'f' * 32}/b"):
        with pytest.raises(errors.InvalidKeyError, match="unfinished puts"):
            await backend.put(key, b"")
    assert os.listdir(tmp_path) == []


async def test_a_file_where_a_folder_is_needed_is_said(backend):
    await backend.put("a", b"x")
    for condition in (None, IfAbsent()):
        with pytest.raises(errors.ObjectExistsError, match="a file is where a folder is needed"):
            await backend.put("a/b", b"", condition=condition)
    assert await backend.get("a") == b"x"


async def test_what_is_no_file_is_no_object(backend, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    for key in ("pipe", "dangling", "folder"):
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.get(key)
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.stat(key)
    assert (await backend.children("")).objects == ()


async def test_the_age_of_a_file_is_told_by_its_file_system(backend, tmp_path):
    """A host whose clock is wrong dates its files wrongly; nobody may take it for dead."""
    await backend.put("mark", b"")
    os.utime(tmp_path / "mark", (0, 0))
    await backend.put("clock", b"")
    age = (await backend.stat("clock")).modified - (await backend.stat("mark")).modified
    assert 0 <= age < 60


# --- network file systems ----------------------------------------------------------------


def deny(monkeypatch, name, times):
    """A cache that says a number of times that there is no file `k`."""
    real, left = getattr(os, name), [times]

    def call(path, *args, **kwargs):
        if str(path).endswith("/k") and left[0]:
            left[0] -= 1
            raise FileNotFoundError(errno.ENOENT, "stale cache", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, name, call)


@pytest.fixture
def on_network(monkeypatch):
    monkeypatch.setattr(network, "is_network", lambda path: True)


async def test_a_denial_by_a_cache_is_checked_with_the_folder(backend, on_network, monkeypatch):
    await backend.put("k", b"x")
    deny(monkeypatch, "open", 1)
    assert await backend.get("k") == b"x"
    deny(monkeypatch, "stat", 1)
    assert (await backend.stat("k")).size == 1


async def test_a_denial_that_stays_is_no_proof_of_absence(backend, on_network, monkeypatch):
    await backend.put("k", b"x")
    deny(monkeypatch, "open", 2)
    with pytest.raises(errors.TransientStorageError, match="cache"):
        await backend.get("k")
    with pytest.raises(errors.ObjectNotFoundError):
        await backend.get("absent")


async def test_on_a_local_disk_absence_is_believed(backend, monkeypatch):
    await backend.put("k", b"x")
    deny(monkeypatch, "open", 1)
    with pytest.raises(errors.ObjectNotFoundError):
        await backend.get("k")


def test_the_file_system_of_a_path_is_that_of_the_last_mount_over_it(tmp_path):
    mounts = [
        "1 0 0:1 / / rw - ext4 /dev/x rw",
        r"2 1 0:2 / /my\040data rw shared:1 - nfs4 server:/ rw",
        "3 1 0:3 / /my rw - ext4 /dev/y rw",
        "4 1 0:4 / /over rw - nfs server:/ rw",
        "5 1 0:5 / /over rw - tmpfs tmpfs rw",
    ]
    found = {p: network.kind_of(p, mounts) for p in ("/", "/my data/a", "/my", "/myx", "/over/a")}
    assert found == {
        "/": "ext4",
        "/my data/a": "nfs4",
        "/my": "ext4",
        "/myx": "ext4",
        "/over/a": "tmpfs",
    }
    assert not network.is_network(str(tmp_path))
