"""Partial saves where one actor pauses before a call, others act, and the first resumes."""

import pytest

from holdfast_storage import errors
from holdfast_storage.commit import (
    add_part,
    close_session,
    end_session,
    open_committed,
    read_session,
    write_attempt,
)
from holdfast_storage.commit.partial import clear_session
from holdfast_storage.testing.tables import TableBackend

FINAL = "run/step_7"
FOLDER = "run/.step_7.partial"
STORES = {"pointer": {}, "rename": {"rename": True}, "decided": {"decided": True}}


class Pausing(TableBackend):
    """Does something else before the first call that a condition names."""

    def pause(self, condition, act):
        self.condition, self.act = condition, act

    async def _pause(self, *call):
        act, condition = getattr(self, "act", None), getattr(self, "condition", None)
        if act is not None and condition(*call):
            self.act = None
            await act()

    async def put(self, key, data, **how):
        await self._pause("put", key)
        return await super().put(key, data, **how)

    async def rename_prefix(self, source, destination):
        await self._pause("rename", source)
        await super().rename_prefix(source, destination)

    async def delete_prefix(self, prefix):
        await self._pause("delete", prefix)
        await super().delete_prefix(prefix)


@pytest.fixture(params=STORES)
def backend(request):
    return Pausing(**STORES[request.param])


async def add(backend, name, *, saved=None):
    async def save(place):
        async def write(area):
            await area.put(name, name.encode())

        record = await write_attempt(backend, place, write)
        if saved is not None:
            await saved()
        return str(record.attempt)

    async def admit(parts):
        pass

    await add_part(backend, FINAL, save, admit)


async def parts(backend):
    session = await read_session(backend, FINAL)
    areas = [await open_committed(backend, session.place(part)) for part in session.parts]
    return sorted(path for area in areas for path in area.manifest.by_path)


async def closed_and_begun_anew(backend, session, names):
    """The session ends by another's hand, the checkpoint goes, and a new session begins."""
    await end_session(backend, session)
    for name in names:
        await add(backend, name)


@pytest.mark.parametrize("names", ["x", "xy", "xyz", "vwxyz"])
async def test_a_paused_clean_up_spares_a_session_that_was_begun_since(backend, names):
    await add(backend, "a")
    session = await close_session(backend, FINAL)
    first = ("rename", FOLDER) if backend.capabilities.rename_prefix else ("delete",)
    backend.pause(
        lambda *call: call[: len(first)] == first,
        lambda: closed_and_begun_anew(backend, session, names),
    )
    await end_session(backend, session)
    assert backend.act is None
    assert await parts(backend) == sorted(names)


@pytest.mark.parametrize("names", ["x", "xyz"])
async def test_a_finalize_that_pauses_before_it_ends_does_not_end_a_newer_session(backend, names):
    await add(backend, "a")
    session = await close_session(backend, FINAL)
    backend.pause(
        lambda *call: call[0] == "put",
        lambda: closed_and_begun_anew(backend, session, names),
    )
    await end_session(backend, session)
    assert backend.act is None
    assert await parts(backend) == sorted(names)


@pytest.mark.parametrize("names", ["x", "xyz"])
async def test_a_finalize_that_pauses_before_it_closes_does_not_close_a_newer_session(
    backend, names
):
    async def close():
        await closed_and_begun_anew(backend, await close_session(backend, FINAL), names)

    await add(backend, "a")
    backend.pause(lambda *call: call == ("put", f"{FOLDER}/00000002.json"), close)
    with pytest.raises(errors.CheckpointNotFoundError, match="meanwhile"):
        await close_session(backend, FINAL)
    assert backend.act is None
    assert await parts(backend) == sorted(names)
    await add(backend, "late")


@pytest.mark.parametrize("names", ["", "x", "xyz"])
async def test_a_part_that_comes_after_the_end_leaves_no_trace_in_a_newer_session(backend, names):
    async def end():
        await closed_and_begun_anew(backend, await close_session(backend, FINAL), names)

    await add(backend, "a")
    backend.pause(lambda *call: call == ("put", f"{FOLDER}/00000002.json"), end)
    with pytest.raises(errors.AttemptLostError):
        await add(backend, "b")
    assert backend.act is None
    assert await parts(backend) == sorted(names)
    await add(backend, "c")
    assert await parts(backend) == sorted(names + "c")


@pytest.mark.parametrize("store", ["rename", "decided"])
async def test_parts_moved_away_by_mistake_join_those_that_came_meanwhile(store):
    backend = Pausing(**STORES[store])
    await add(backend, "a")
    session = await close_session(backend, FINAL)

    async def begin_anew():
        await closed_and_begun_anew(backend, session, "xy")
        backend.pause(lambda *call: ".retired-" in call[1], lambda: add(backend, "z"))

    backend.pause(lambda *call: call == ("rename", FOLDER), begin_anew)
    await end_session(backend, session)
    assert backend.act is None
    assert await parts(backend) == ["x", "y", "z"]
    assert not [key for key in backend.objects if ".retired-" in key or ".dead-" in key]


@pytest.mark.parametrize("who", ["sweep", "save", "finalize"])
@pytest.mark.parametrize("store", ["rename", "decided"])
async def test_parts_moved_away_by_a_process_that_died_then_are_put_back(store, who):
    backend = Pausing(**STORES[store])
    for name in "xy":
        await add(backend, name)
    await backend.rename_prefix(FOLDER, f"run/.step_7.retired-{'0' * 32}")
    if who == "sweep":
        await (await backend.commit_strategy()).sweep("run", older_than=0.0)
    elif who == "save":
        await add(backend, "z")
    else:
        await close_session(backend, FINAL)
    assert await parts(backend) == (["x", "y", "z"] if who == "save" else ["x", "y"])


async def test_a_clean_up_spares_the_part_of_a_newer_session_that_is_not_in_the_log_yet(backend):
    await add(backend, "a")
    await end_session(backend, await close_session(backend, FINAL))
    if backend.capabilities.rename_prefix:
        return  # there the folder is moved away as a whole, and the part is refused
    await add(backend, "b", saved=lambda: clear_session(backend, FINAL))
    assert await parts(backend) == ["b"]


async def test_a_sweep_does_not_give_up_parts_to_which_one_was_added_meanwhile(backend):
    await add(backend, "a")
    backend._tick += 10**7
    backend.pause(
        lambda *call: call[0] == "put" and call[1].endswith("/00000002.json"),
        lambda: add(backend, "b"),
    )
    await (await backend.commit_strategy()).sweep("run", older_than=0.0)
    assert backend.act is None
    assert await parts(backend) == ["a", "b"]
