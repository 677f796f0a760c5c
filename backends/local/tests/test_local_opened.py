"""Files that programs write with `open` into a folder of an attempt, as users' handlers do."""

from pathlib import Path

import pytest

from holdfast_local import LocalBackend, folders
from holdfast_metadata import digest_bytes
from holdfast_storage import errors, streaming
from holdfast_storage.commit import open_committed, opening, verify

FINAL = "run/step_7"


@pytest.fixture
def on_disk(tmp_path):
    return LocalBackend(str(tmp_path))


async def attempt_with_files(backend, files):
    strategy = await backend.commit_strategy()
    txn = await strategy.begin(FINAL)
    area = strategy.area(txn)
    folder = Path(area.child("item").local_path())
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return strategy, txn, area


async def test_files_written_with_open_are_listed_with_their_digests(on_disk, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_BYTES", 4)
    files = {"a": b"1", "deep/b": b"123456789", "empty": b""}
    strategy, txn, area = await attempt_with_files(on_disk, files)
    entries = await strategy.seal(txn, area)
    assert {e.path: (e.size, e.digest) for e in entries} == {
        f"item/{name}": (len(data), digest_bytes(data)) for name, data in files.items()
    }
    await strategy.commit(txn, entries)
    opened = await open_committed(on_disk, FINAL)
    assert await opened.child("item").files() == {n: len(data) for n, data in files.items()}
    await opened.check()


async def test_files_written_with_open_are_synced_before_the_commit(on_disk, monkeypatch):
    synced = []
    monkeypatch.setattr(folders, "fsync_path", lambda path: synced.append(Path(path).name))
    strategy, txn, area = await attempt_with_files(on_disk, {"deep/b": b"1"})
    await strategy.seal(txn, area)
    assert "b" in synced


@pytest.mark.parametrize("size", [3, 9])
async def test_damage_to_them_is_found_without_reading_them_whole(on_disk, monkeypatch, size):
    monkeypatch.setattr(streaming, "PIECE_BYTES", 4)
    monkeypatch.setattr(opening, "PIECE_BYTES", 4)
    strategy, txn, area = await attempt_with_files(on_disk, {"b": b"x" * size})
    await strategy.commit(txn, await strategy.seal(txn, area))
    opened = await open_committed(on_disk, FINAL)
    Path(opened.child("item").local_path(), "b").write_bytes(b"x" * (size - 1) + b"y")
    with pytest.raises(errors.DamagedCheckpointError, match="other bytes"):
        await opened.child("item").check()
    assert (await verify(on_disk, FINAL)).problems
