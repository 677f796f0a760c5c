"""The log of partial saves, on each way to commit."""

import asyncio

import pytest

from holdfast_metadata.partial import PARTIAL_FILE
from holdfast_storage import errors
from holdfast_storage.commit import (
    add_part,
    close_session,
    end_session,
    is_merged,
    open_committed,
    read_session,
    write_attempt,
)
from holdfast_storage.testing.tables import TableBackend

FINAL = "run/step_7"
STORES = {
    "pointer": {},
    "rename": {"rename": True, "exchange": True},
    "decided": {"decided": True},
}


@pytest.fixture(params=STORES)
def backend(request):
    return TableBackend(**STORES[request.param])


async def add(backend, name):
    async def save(place):
        async def write(area):
            await area.put(name, name.encode())

        return str((await write_attempt(backend, place, write)).attempt)

    async def admit(parts):
        session = await read_session(backend, FINAL)
        for part in parts:
            area = await open_committed(backend, session.place(part))
            if name in area.manifest.by_path:
                raise ValueError(f"{name} is there")

    await add_part(backend, FINAL, save, admit)


async def merge(backend):
    session = await close_session(backend, FINAL)

    async def write(area):
        for part in session.parts:
            there = await open_committed(backend, session.place(part))
            for path in there.manifest.by_path:
                await area.put(path, await there.get(path))
        await area.put(PARTIAL_FILE, session.closed.to_bytes())

    if not await is_merged(backend, FINAL, session.parts):
        await write_attempt(backend, FINAL, write)
    await end_session(backend, session)


async def files(backend):
    return set((await open_committed(backend, FINAL)).manifest.by_path) - {PARTIAL_FILE}


async def left(backend):
    return [i.key async for i in backend.walk("run") if "/.step_7.partial/part-" in i.key]


async def test_parts_count_in_order_and_are_cleared_away_once_merged(backend):
    for name in "abc":
        await add(backend, name)
    assert len((await read_session(backend, FINAL)).parts) == 3
    with pytest.raises(errors.CheckpointNotFoundError, match=r"partial\.finalize"):
        await open_committed(backend, FINAL)
    await merge(backend)
    assert await files(backend) == {"a", "b", "c"}
    assert await left(backend) == []
    assert not (await read_session(backend, FINAL)).begun


async def test_many_at_once_all_count_and_of_those_alike_one(backend):
    names = ["a", "b", "c", "d", "same", "same", "same"]
    found = await asyncio.gather(*(add(backend, n) for n in names), return_exceptions=True)
    assert [e for e in found[:4] if e] == []
    assert [type(e) for e in found[4:] if e] == [ValueError, ValueError]
    await merge(backend)
    assert await files(backend) == {"a", "b", "c", "d", "same"}
    assert await left(backend) == []


async def test_no_part_comes_after_the_log_is_closed(backend):
    await add(backend, "a")
    await close_session(backend, FINAL)
    with pytest.raises(errors.AttemptLostError, match="call it again"):
        await add(backend, "b")
    await merge(backend)
    assert await files(backend) == {"a"}


async def test_a_second_session_starts_after_the_first_was_deleted(backend):
    for round_ in "ab":
        await add(backend, round_)
        await merge(backend)
        assert await files(backend) == {round_}
        record = (await open_committed(backend, FINAL)).record
        await (await backend.commit_strategy()).retire(FINAL, expected=record.attempt)
    with pytest.raises(errors.CheckpointNotFoundError):
        await close_session(backend, FINAL)


async def test_an_entry_that_cannot_be_read_stops_everyone(backend):
    await add(backend, "a")
    await backend.put("run/.step_7.partial/00000002.json", b"damage")
    with pytest.raises(errors.RecordUnreadableError, match=r"00000002\.json"):
        await add(backend, "b")
    with pytest.raises(errors.RecordUnreadableError):
        await close_session(backend, FINAL)


async def test_a_folder_without_the_mark_is_never_swept(backend):
    await backend.put("run/.step_7.partial/00000001.json", b"somebody's")
    report = await (await backend.commit_strategy()).sweep("run", older_than=0.0)
    assert ("run/.step_7.partial", "it carries no mark of holdfast") in report.spared
    assert await backend.get("run/.step_7.partial/00000001.json") == b"somebody's"
