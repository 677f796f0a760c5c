"""Attempts that others, or a cancellation, get in the way of just after their decision."""

import asyncio

import pytest

from holdfast_metadata import COMMIT_FILE
from holdfast_storage import errors
from holdfast_storage.commit import (
    occupant,
    open_committed,
    read_record,
    unless_changed,
    write_attempt,
)
from holdfast_storage.testing.tables import TableBackend

FINAL = "run/step_7"


def writing(name):
    async def write(area):
        await area.put(name, b"data")

    return write


class Cancelling(TableBackend):
    """Cancels a task some turns of the loop after a commit record was put."""

    task = None
    turns = 0

    async def put(self, key, data, **how):
        version = await super().put(key, data, **how)
        if key == f"{FINAL}/{COMMIT_FILE}":
            self.later = asyncio.ensure_future(self._cancel())
        return version

    async def _cancel(self):
        for _ in range(self.turns):
            await asyncio.sleep(0)
        self.task.cancel()


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancellation_after_the_decision_does_not_hide_that_it_is_committed(turns):
    backend = Cancelling()
    backend.turns = turns
    backend.task = asyncio.ensure_future(write_attempt(backend, FINAL, writing("a")))
    await asyncio.wait([backend.task])
    assert (await read_record(backend, FINAL)).committed
    assert not backend.task.cancelled()
    assert backend.task.result().committed


class Crossing(TableBackend):
    """Lets the second of two exchanges happen before the first to finish looks back."""

    def __init__(self):
        super().__init__(rename=True, exchange=True)
        self.arrived = 0
        self.exchanged = [asyncio.Event(), asyncio.Event()]
        self.crossing = False

    async def exchange_prefix(self, first, second):
        if not self.crossing or self.arrived == 2:
            await super().exchange_prefix(first, second)
            return
        turn = self.arrived
        self.arrived += 1
        while self.arrived < 2:
            await asyncio.sleep(0)
        if turn == 1:
            await self.exchanged[0].wait()
        await super().exchange_prefix(first, second)
        self.exchanged[turn].set()
        await self.exchanged[1].wait()


async def test_of_two_replacements_that_cross_one_is_committed_and_told_so():
    backend = Crossing()
    await write_attempt(backend, FINAL, writing("old"))
    backend.crossing = True
    names = ["a", "b"]
    outcomes = await asyncio.gather(
        *(write_attempt(backend, FINAL, writing(name), replace=True) for name in names),
        return_exceptions=True,
    )
    assert backend.arrived == 2
    (winner,) = [n for n, o in zip(names, outcomes, strict=True) if not isinstance(o, Exception)]
    assert [type(o) for o in outcomes if isinstance(o, Exception)] == [errors.CommitConflictError]
    assert set((await open_committed(backend, FINAL)).manifest.by_path) == {winner}
    assert not [key for key in backend.objects if ".attempt-" in key]


async def replace(backend):
    await write_attempt(backend, FINAL, writing("new"), replace=True)


async def delete(backend):
    expected = (await read_record(backend, FINAL)).attempt
    await (await backend.commit_strategy()).retire(FINAL, expected=expected)


async def test_what_a_check_finds_in_a_checkpoint_that_changes_under_it_is_no_damage():
    backend = TableBackend(rename=True, exchange=True)
    await write_attempt(backend, FINAL, writing("old"))
    todo = [replace, delete]

    async def check():
        if todo:
            await todo.pop(0)(backend)
        return not todo and (await read_record(backend, FINAL)).committed

    with pytest.raises(errors.CheckpointDeletedError, match="while it was checked"):
        await unless_changed(backend, FINAL, check)
    await write_attempt(backend, FINAL, writing("old"))
    todo = [replace]
    assert await unless_changed(backend, FINAL, check)

    async def damaged():
        return False

    assert not await unless_changed(backend, FINAL, damaged)


async def test_a_checkpoint_that_is_committed_between_two_looks_is_not_taken_for_orbaxs():
    class Late(TableBackend):
        todo = True

        async def children(self, prefix):
            if prefix == FINAL and self.todo:
                self.todo = False
                await write_attempt(self, FINAL, writing("_CHECKPOINT_METADATA"))
            return await super().children(prefix)

    assert (await occupant(Late(rename=True), FINAL)).kind == "ours"
