"""What a backend must show: the guarantees G1 to G8, refusals included."""
# ruff: noqa: D102 - the name of a test is the sentence that it shows

from __future__ import annotations

import asyncio
import itertools
import os
import pathlib
from typing import Any

import pytest

from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.values import ByteRange, IfAbsent, IfVersion, ObjectVersion

CONTENTS = {"empty": b"", "one": b"x", "text": "ключ".encode(), "large": os.urandom(3 << 20)}
BAD_KEYS = ["", "/a", "a/", "a//b", "a/./b", "../a", "a/..", ".", "a\0b", "a\ud800", 5]


async def keys_below(backend: StorageBackend, prefix: str) -> list[str]:
    """The keys that a walk yields, sorted."""
    return sorted([info.key async for info in backend.walk(prefix)])


async def outcomes(*calls: Any) -> list[Any]:
    """Runs calls at once; an exception is an outcome too."""
    return list(await asyncio.gather(*calls, return_exceptions=True))


class StorageBackendTests:
    """Subclass it and provide the fixture `backend`: an empty store.

    Attributes:
        bad_weather: Replies get lost on the way. A condition that did not hold may then be
            told as an unknown outcome, and a put that was repeated makes two versions.
        backslash_divides: The store takes a backslash for a slash: known of one server, whose
            documentation must say so. Item names with a backslash are refused everywhere.
    """

    bad_weather = False
    backslash_divides = False

    @property
    def lost(self) -> tuple[type[errors.StorageError], ...]:
        """What a put is told whose condition did not hold."""
        unknown = (errors.TransientStorageError,) if self.bad_weather else ()
        return (errors.PreconditionFailedError, errors.ObjectExistsError, *unknown)

    def test_no_standard_test_is_overridden(self) -> None:
        for name in vars(StorageBackendTests):
            if name.startswith("test_"):
                assert getattr(type(self), name) is getattr(StorageBackendTests, name), name

    # --- G1: a put is all or nothing ---------------------------------------------------------

    @pytest.mark.parametrize("data", CONTENTS.values(), ids=CONTENTS)
    @pytest.mark.parametrize("durable", [True, False])
    async def test_what_was_put_is_got(
        self, backend: StorageBackend, data: bytes, durable: bool
    ) -> None:
        version = await backend.put("a/b", data, durable=durable)
        assert await backend.get("a/b") == data
        info = await backend.stat("a/b")
        assert (info.key, info.size, info.version) == ("a/b", len(data), version)

    async def test_bytes_are_read_with_the_version_that_they_are(
        self, backend: StorageBackend
    ) -> None:
        versions = {(await backend.put("k", b"0")).token: b"0"}
        stop = asyncio.Event()

        async def write() -> None:
            for n in range(1, 20):
                data = str(n).encode()
                versions[(await backend.put("k", data)).token] = data
            stop.set()

        async def read() -> list[tuple[str, bytes]]:
            seen = []
            while not stop.is_set():
                try:
                    info, data = await backend.read("k")
                except errors.TransientStorageError:
                    continue
                assert info.size == len(data)
                seen.append((info.version.token, data))
            return seen

        _, *readers = await asyncio.gather(write(), read(), read())
        for token, data in itertools.chain(*readers):
            if not self.bad_weather:
                assert token in versions
            assert versions.get(token, data) == data
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.read("absent")

    async def test_a_put_replaces_and_changes_the_version(self, backend: StorageBackend) -> None:
        versions = {(await backend.put("k", bytes([n]))).token for n in range(20)}
        assert len(versions) == 20
        assert await backend.get("k") == bytes([19])

    async def test_readers_see_old_or_new_and_nothing_between(
        self, backend: StorageBackend
    ) -> None:
        await backend.put("k", b"a" * 100_000)
        stop = asyncio.Event()

        async def write() -> None:
            for n in range(20):
                await backend.put("k", bytes([97 + n % 2]) * 100_000)
            stop.set()

        async def read() -> None:
            while not stop.is_set():
                data = await backend.get("k")
                assert len(data) == 100_000
                assert len(set(data)) == 1

        await asyncio.gather(write(), read(), read())

    async def test_odd_but_legal_keys_work(self, backend: StorageBackend) -> None:
        odd = [
            "ключ/日本",
            "a b",
            "a'b\"c",
            "#?%41",
            "a+b",
            "a%2Bb%20c",
            "100%",
            "x" * 200,
            ".hidden",
            "a/.b",
            "~",
        ]
        if not self.backslash_divides:
            odd.append("a\\b")
        for key in odd:
            await backend.put(key, key.encode())
        for key in odd:
            assert await backend.get(key) == key.encode()
        assert await keys_below(backend, "") == sorted(odd)

    @pytest.mark.parametrize("key", BAD_KEYS)
    async def test_bad_keys_are_refused(self, backend: StorageBackend, key: Any) -> None:
        for call in (backend.get, backend.stat, backend.delete):
            with pytest.raises(errors.InvalidKeyError):
                await call(key)
        with pytest.raises(errors.InvalidKeyError):
            await backend.put(key, b"")
        assert await keys_below(backend, "") == []

    async def test_byte_ranges(self, backend: StorageBackend) -> None:
        await backend.put("k", b"0123456789")
        for start, stop in [(0, 4), (3, 3), (5, 10), (8, 100), (20, 30)]:
            part = await backend.get("k", byte_range=ByteRange(start, stop))
            assert part == b"0123456789"[start:stop]

    # --- G2: conditions hold, and are never approximated -------------------------------------

    async def test_create_only_creates_once(self, backend: StorageBackend) -> None:
        if not backend.capabilities.create_if_absent:
            with pytest.raises(errors.UnsupportedOperationError):
                await backend.put("k", b"x", condition=IfAbsent())
            assert await keys_below(backend, "") == []
            return
        version = await backend.put("k", b"first", condition=IfAbsent())
        with pytest.raises(self.lost if self.bad_weather else errors.ObjectExistsError):
            await backend.put("k", b"second", condition=IfAbsent())
        assert await backend.get("k") == b"first"
        assert (await backend.stat("k")).version == version
        await backend.delete("k")
        await backend.put("k", b"third", condition=IfAbsent())

    async def test_of_many_creators_one_wins(self, backend: StorageBackend) -> None:
        if not backend.capabilities.create_if_absent:
            return
        for turn in range(5):
            found = await outcomes(
                *(backend.put(f"k{turn}", bytes([n]), condition=IfAbsent()) for n in range(8))
            )
            winners = [n for n, outcome in enumerate(found) if isinstance(outcome, ObjectVersion)]
            assert len(winners) == 1
            losers = [outcome for outcome in found if not isinstance(outcome, ObjectVersion)]
            assert all(isinstance(loser, self.lost) for loser in losers)
            if not self.bad_weather:
                assert all(isinstance(loser, errors.ObjectExistsError) for loser in losers)
            assert await backend.get(f"k{turn}") == bytes(winners)

    async def test_a_swap_needs_the_current_version(self, backend: StorageBackend) -> None:
        old = await backend.put("k", b"old")
        if not backend.capabilities.compare_and_swap:
            with pytest.raises(errors.UnsupportedOperationError):
                await backend.put("k", b"new", condition=IfVersion(old))
            assert await backend.get("k") == b"old"
            return
        new = await backend.put("k", b"new", condition=IfVersion(old))
        assert new != old
        assert await backend.get("k") == b"new"
        assert (await backend.stat("k")).version == new
        with pytest.raises(self.lost if self.bad_weather else errors.PreconditionFailedError):
            await backend.put("k", b"late", condition=IfVersion(old))
        assert await backend.get("k") == b"new"
        newest = await backend.put("k", b"newest", condition=IfVersion(new))
        assert (await backend.stat("k")).version == newest
        with pytest.raises((*self.lost, errors.ObjectNotFoundError)):
            await backend.put("absent", b"x", condition=IfVersion(old))
        assert await keys_below(backend, "") == ["k"]

    async def test_no_increment_is_lost(self, backend: StorageBackend) -> None:
        if not backend.capabilities.compare_and_swap:
            return
        await backend.put("counter", b"0")
        unknown = 0

        async def increment() -> None:
            nonlocal unknown
            while True:
                before = await backend.stat("counter")
                value = int(await backend.get("counter"))
                if (await backend.stat("counter")).version != before.version:
                    continue
                condition = IfVersion(before.version)
                try:
                    await backend.put("counter", str(value + 1).encode(), condition=condition)
                except errors.PreconditionFailedError:
                    continue
                except errors.TransientStorageError:
                    assert self.bad_weather
                    unknown += 1  # a lost reply, and others wrote since
                return

        async def worker() -> None:
            for _ in range(4):
                await increment()

        await asyncio.gather(*(worker() for _ in range(5)))
        assert 20 - unknown <= int(await backend.get("counter")) <= 20

    # --- G3: what was written is seen at once ------------------------------------------------

    async def test_writes_and_deletes_are_seen_at_once(self, backend: StorageBackend) -> None:
        for turn in range(5):
            await backend.put(f"p/{turn}", b"x")
            assert keys.join("p", str(turn)) in await keys_below(backend, "p")
            assert len((await backend.children("p")).objects) == 1
            await backend.delete(f"p/{turn}")
            assert await keys_below(backend, "p") == []
            with pytest.raises(errors.ObjectNotFoundError):
                await backend.stat(f"p/{turn}")

    # --- G4: prefixes match whole segments ---------------------------------------------------

    async def test_prefixes_match_whole_segments(self, backend: StorageBackend) -> None:
        for key in ("a/b/x", "a/b/c/y", "a/bc", "a/bcd/z", "ab/x"):
            await backend.put(key, b"")
        assert await keys_below(backend, "a/b") == ["a/b/c/y", "a/b/x"]
        assert await keys_below(backend, "a/bc") == []
        below = await backend.children("a")
        assert below.prefixes == ("a/b", "a/bcd")
        assert [info.key for info in below.objects] == ["a/bc"]
        top = await backend.children("")
        assert (top.prefixes, top.objects) == (("a", "ab"), ())
        await backend.delete_prefix("a/b")
        assert await keys_below(backend, "") == ["a/bc", "a/bcd/z", "ab/x"]

    async def test_nothing_below_an_absent_prefix(self, backend: StorageBackend) -> None:
        assert await keys_below(backend, "nowhere") == []
        listing = await backend.children("nowhere")
        assert (listing.prefixes, listing.objects) == ((), ())

    async def test_names_of_many_prefixes_are_those_of_their_listings(
        self, backend: StorageBackend
    ) -> None:
        for key in ("a/x", "a/b/y", "a/b/c/z", "ab/x", "d/e/f", "top"):
            await backend.put(key, b"")
        asked = ["a", "d", "nowhere", "a/b", "ab"]
        found = await backend.names_in(asked)
        assert sorted(found) == sorted(asked)
        for prefix in asked:
            listing = await backend.children(prefix)
            assert found[prefix].prefixes == {keys.leaf(below) for below in listing.prefixes}
            assert found[prefix].objects == {keys.leaf(info.key) for info in listing.objects}
        assert await backend.names_in([]) == {}
        await backend.delete("a/x")
        assert (await backend.names_in(["a"]))["a"].objects == frozenset()

    # --- G5: deleting what is not there succeeds ---------------------------------------------

    async def test_deleting_is_repeatable(self, backend: StorageBackend) -> None:
        await backend.put("a/b", b"x")
        for _ in range(2):
            await backend.delete("a/b")
            await backend.delete_prefix("a")
            await backend.delete("a/b/c")
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.get("a/b")

    # --- G6: renames are atomic and replace nothing ------------------------------------------

    async def test_a_rename_moves_everything(self, backend: StorageBackend) -> None:
        await backend.put("from/a", b"1")
        await backend.put("from/b/c", b"2")
        if not backend.capabilities.rename_prefix:
            with pytest.raises(errors.UnsupportedOperationError):
                await backend.rename_prefix("from", "to")
            assert await keys_below(backend, "") == ["from/a", "from/b/c"]
            return
        await backend.rename_prefix("from", "to")
        assert await keys_below(backend, "") == ["to/a", "to/b/c"]
        assert await backend.get("to/b/c") == b"2"
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.rename_prefix("from", "elsewhere")

    async def test_a_rename_replaces_nothing(self, backend: StorageBackend) -> None:
        if not backend.capabilities.rename_prefix:
            return
        await backend.put("from/a", b"1")
        await backend.put("to/b", b"2")
        await backend.put("file", b"3")
        for destination in ("to", "file"):
            with pytest.raises(errors.ObjectExistsError):
                await backend.rename_prefix("from", destination)
        assert await keys_below(backend, "") == ["file", "from/a", "to/b"]

    async def test_of_many_renames_to_one_place_one_wins(self, backend: StorageBackend) -> None:
        if not backend.capabilities.rename_prefix:
            return
        for n in range(6):
            await backend.put(f"from{n}/a", bytes([n]))
        found = await outcomes(*(backend.rename_prefix(f"from{n}", "to") for n in range(6)))
        winners = [n for n, outcome in enumerate(found) if outcome is None]
        assert len(winners) == 1
        assert await backend.get("to/a") == bytes(winners)
        assert len(await keys_below(backend, "")) == 6

    async def test_an_exchange_swaps_both(self, backend: StorageBackend) -> None:
        await backend.put("one/a", b"1")
        await backend.put("two/b", b"2")
        if not backend.capabilities.exchange_prefix:
            with pytest.raises(errors.UnsupportedOperationError):
                await backend.exchange_prefix("one", "two")
        else:
            await backend.exchange_prefix("one", "two")
            assert await keys_below(backend, "") == ["one/b", "two/a"]
            await backend.exchange_prefix("one", "two")
            with pytest.raises(errors.ObjectNotFoundError):
                await backend.exchange_prefix("one", "absent")
        assert await keys_below(backend, "") == ["one/a", "two/b"]

    # --- G7: TensorStore's bytes are the backend's bytes -------------------------------------

    async def test_tensorstore_and_the_backend_see_the_same_bytes(
        self, backend: StorageBackend
    ) -> None:
        import tensorstore

        target = backend.kv_target("kv/below")
        context = target.shared or tensorstore.Context(dict(target.context))
        store = await tensorstore.KvStore.open(dict(target.spec), context=context)
        await store.write("x/y", b"from TensorStore")
        await backend.sync_prefix("kv")
        assert await backend.get("kv/below/x/y") == b"from TensorStore"
        assert await keys_below(backend, "kv") == ["kv/below/x/y"]
        await backend.put("kv/below/z", b"from the backend")
        assert bytes((await store.read("z")).value) == b"from the backend"
        assert target.spec["path"].endswith("/")

    async def test_files_written_into_a_local_folder_are_the_backends(
        self, backend: StorageBackend
    ) -> None:
        folder = backend.local_path("opened/below")
        if folder is None:
            return  # the store has none, which is an answer too
        _write_file(folder, "deep/file", b"from a program")
        await backend.sync_prefix("opened")
        assert await backend.get("opened/below/deep/file") == b"from a program"
        assert await keys_below(backend, "opened") == ["opened/below/deep/file"]
        await backend.put("opened/below/put", b"from the backend")
        assert _files_in(folder) == {"deep/file": b"from a program", "put": b"from the backend"}
        await backend.delete_prefix("opened/below")
        assert _files_in(folder) == {}

    # --- G8: errors are ours, and nothing is left half-way -----------------------------------

    async def test_absence_is_told_with_key_and_root(self, backend: StorageBackend) -> None:
        for call in (backend.get, backend.stat):
            with pytest.raises(errors.ObjectNotFoundError) as caught:
                await call("not/there")
            assert isinstance(caught.value, FileNotFoundError)
            assert caught.value.key == "not/there"
            assert caught.value.root == backend.root

    @pytest.mark.parametrize("length", [300, 5000])
    async def test_a_key_that_is_too_long_for_the_store_is_refused(
        self, backend: StorageBackend, length: int
    ) -> None:
        key = "x" * length
        try:
            await backend.put(key, b"x")
        except errors.StorageError:
            for call in (backend.get, backend.stat):
                with pytest.raises(errors.StorageError):
                    await call(key)
            assert await keys_below(backend, "") == []
        else:
            assert await backend.get(key) == b"x"
            assert await keys_below(backend, "") == [key]

    @pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a")])
    async def test_an_object_below_another_is_stored_or_refused(
        self, backend: StorageBackend, first: str, second: str
    ) -> None:
        await backend.put(first, b"first")
        try:
            await backend.put(second, b"second")
        except errors.StorageError:
            assert await keys_below(backend, "") == [first]
        else:
            assert await backend.get(second) == b"second"
        assert await backend.get(first) == b"first"

    async def test_a_cancelled_put_leaves_all_or_nothing(self, backend: StorageBackend) -> None:
        data = CONTENTS["large"]
        for turn in range(5):
            task = asyncio.ensure_future(backend.put(f"c/{turn}", data))
            await asyncio.sleep(0.0005 * turn)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        for info in [info async for info in backend.walk("c")]:
            assert await backend.get(info.key) == data

    async def test_a_late_write_brings_no_folder_back(self, backend: StorageBackend) -> None:
        if not backend.capabilities.rename_prefix:
            return
        await backend.put("f/a", b"")
        await backend.rename_prefix("f", "g")
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.put("f/b", b"", parents=False)
        assert await keys_below(backend, "") == ["g/a"]

    async def test_closing_twice_does_nothing(self, backend: StorageBackend) -> None:
        await backend.aclose()
        await backend.aclose()


def _write_file(folder: str, name: str, data: bytes) -> None:
    path = pathlib.Path(folder, name)
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


def _files_in(folder: str) -> dict[str, bytes]:
    base = pathlib.Path(folder)
    found = (path for path in base.rglob("*") if path.is_file())
    return {path.relative_to(base).as_posix(): path.read_bytes() for path in found}
