"""One of something for each event loop."""

import asyncio

import pytest

from holdfast_storage.per_loop import PerLoop


def test_each_loop_gets_its_own_and_tasks_that_ask_at_once_the_same():
    held, made = PerLoop(), []

    async def make():
        await asyncio.sleep(0)
        made.append(asyncio.get_running_loop())
        return len(made)

    async def ask():
        return set(await asyncio.gather(*(held.get(make) for _ in range(3))))

    assert [asyncio.run(ask()), asyncio.run(ask())] == [{1}, {2}]
    assert made[0] is not made[1]


def test_what_could_not_be_made_or_was_taken_away_is_made_by_the_next_who_asks():
    held = PerLoop()

    async def fail():
        raise ConnectionError

    async def make():
        return "made"

    async def ask():
        assert held.pop() is None
        with pytest.raises(ConnectionError):
            await held.get(fail)
        assert await held.get(make) == "made"
        assert (held.pop(), held.pop()) == ("made", None)
        assert await held.get(make) == "made"

    asyncio.run(ask())
