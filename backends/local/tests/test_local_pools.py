"""Threads: enough of them, and not more for every folder."""

import threading

from holdfast_local import LocalBackend


async def test_a_thousand_folders_need_no_more_threads_than_one(tmp_path):
    await LocalBackend(str(tmp_path / "first")).put("key", b"1")
    before = threading.active_count()
    for number in range(1000):
        backend = LocalBackend(str(tmp_path / str(number)))
        if number % 100 == 0:
            await backend.put("key", b"1")
            await backend.sync_prefix("")
    assert threading.active_count() == before


async def test_a_place_that_is_closed_takes_no_threads_from_others(tmp_path):
    one, other = LocalBackend(str(tmp_path / "one")), LocalBackend(str(tmp_path / "other"))
    await one.aclose()
    await other.put("key", b"1")
    assert await other.get("key") == b"1"
