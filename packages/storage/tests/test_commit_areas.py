import asyncio

import pytest

from holdfast_metadata import ATTEMPT_FILE, AttemptMark
from holdfast_storage import errors, keys
from holdfast_storage.commit import heartbeat as heartbeat_of
from holdfast_storage.commit import list_committed, open_committed, reading, verify
from holdfast_storage.commit.heartbeat import beat
from holdfast_storage.testing.history import History, strategy_for
from holdfast_storage.testing.tables import TableBackend

FINAL = "run/step_7"


@pytest.fixture(params=[{}, {"rename": True, "exchange": True}], ids=["pointer", "rename"])
def backend(request):
    return TableBackend(**request.param)


async def begun(backend):
    strategy = await strategy_for(backend)
    return strategy, await strategy.begin(FINAL)


async def test_a_name_is_written_once_in_a_save(backend):
    strategy, txn = await begun(backend)
    area = strategy.area(txn)
    await area.child("sub").put("b", b"1")
    with pytest.raises(ValueError, match="'sub/b' is written twice"):
        await area.put("sub/b", b"2")


@pytest.mark.parametrize("name", ["", "../x", "/x", "a//b", "."])
async def test_a_name_that_leaves_the_area_is_refused(backend, name):
    strategy, txn = await begun(backend)
    with pytest.raises(errors.InvalidKeyError):
        await strategy.area(txn).put(name, b"")


async def test_what_went_around_put_is_listed_by_size_alone(backend):
    strategy, txn = await begun(backend)
    area = strategy.area(txn)
    await area.put("small", b"12")
    area.child("state").kv_target("d")
    await backend.put(keys.join(txn.staging, "state/d/chunk"), b"12345")
    found = {entry.path: entry for entry in await strategy.seal(txn, area)}
    assert set(found) == {"small", "state/d/chunk"}
    assert found["small"].digest is not None
    assert (found["state/d/chunk"].size, found["state/d/chunk"].digest) == (5, None)


async def test_a_beat_counts_and_keeps_the_rest_of_the_mark(backend):
    _, txn = await begun(backend)
    key = keys.join(txn.staging, ATTEMPT_FILE)
    before = AttemptMark.from_bytes(await backend.get(key))
    await beat(backend, txn)
    after = AttemptMark.from_bytes(await backend.get(key))
    assert (after.beat, after.attempt, after.pid) == (before.beat + 1, txn.attempt, before.pid)


async def test_a_beat_does_not_bring_back_a_swept_attempt(backend):
    strategy, txn = await begun(backend)
    await strategy.sweep("run", older_than=0.0)
    with pytest.raises(errors.ObjectNotFoundError):
        await beat(backend, txn)
    assert not [key for key in backend.objects if key.endswith(ATTEMPT_FILE)]


async def test_the_heartbeat_beats_until_its_block_is_left(backend):
    _, txn = await begun(backend)
    key = keys.join(txn.staging, ATTEMPT_FILE)

    async def beats():
        return AttemptMark.from_bytes(await backend.get(key)).beat

    async with heartbeat_of(backend, txn, interval_s=0.001):
        while await beats() < 2:
            await asyncio.sleep(0)
    ended = await beats()
    assert ended >= 2
    assert await beats() == ended


@pytest.mark.parametrize("path", ["run/step_7/sub", "run/step_7/sub/deeper"])
async def test_a_path_inside_a_checkpoint_is_told_which(backend, path):
    await History(FINAL).save(backend, "A")
    with pytest.raises(errors.CheckpointNotFoundError, match="inside the checkpoint 'run/step_7'"):
        await open_committed(backend, path)


async def test_a_run_folder_is_told_what_it_holds(backend):
    await History(FINAL).save(backend, "A")
    with pytest.raises(errors.CheckpointNotFoundError, match=r"folder of checkpoints.*step_7"):
        await open_committed(backend, "run")


async def test_damage_names_the_file_and_is_not_returned(backend):
    history = History(FINAL)
    await history.save(backend, "A")
    area = await open_committed(backend, FINAL)
    key = keys.join(FINAL, area.record.data, "sub/b")
    await backend.put(key, bytes(len(await backend.get(key))))
    assert [p for p in (await verify(backend, FINAL)).problems if "sub/b" in p]
    with pytest.raises(errors.DamagedCheckpointError, match="sub/b") as caught:
        await reading(backend, FINAL, lambda opened: opened.child("sub").get("b"))
    assert caught.value.file == "sub/b"


async def test_a_missing_file_is_committed_and_not_whole(backend):
    await History(FINAL).save(backend, "A")
    area = await open_committed(backend, FINAL)
    await backend.delete(keys.join(FINAL, area.record.data, "a"))
    with pytest.raises(errors.IncompleteCheckpointError, match="'a' is missing"):
        await open_committed(backend, FINAL)
    assert [entry.name for entry in (await list_committed(backend, "run")).committed] == ["step_7"]


async def test_files_that_nobody_listed_are_not_committed():
    backend = TableBackend()
    strategy = await backend.commit_strategy()
    txn = await strategy.begin("7")
    area = strategy.area(txn)
    await area.put("a", b"x")
    entries = await strategy.seal(txn, area)
    await backend.put(f"{txn.staging}/stranger", b"y")
    with pytest.raises(errors.CommitError, match="stranger"):
        await strategy.commit(txn, entries)
    await strategy.abort(txn)
    assert [info.key async for info in backend.walk("")] == ["7/_COMMIT.json"]  # the fence


async def test_a_store_of_objects_has_no_local_folder(backend):
    strategy, txn = await begun(backend)
    assert strategy.area(txn).local_path() is None
