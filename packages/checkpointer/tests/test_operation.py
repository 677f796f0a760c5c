"""What several processes do together: simulated in one, over a store that counts."""

import asyncio
import time

import pytest

from holdfast_checkpointer import progress
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.errors import (
    DisagreementError,
    ProcessStalledError,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.memory_service import MemoryService


async def together(count, part, *, primary=0, deadline_s=10.0, name="save runs/x", service=None):
    """Runs `part(operation)` as every process; gives what each returned or raised."""
    service = service or MemoryService()
    processes = range(count)

    async def one(me):
        coordinator = Coordinator(
            service, me=me, processes=processes, primary=primary, deadline_s=deadline_s
        )
        async with coordinator.operation(name) as operation:
            return await part(operation)

    return await asyncio.gather(*map(one, processes), return_exceptions=True)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("primary", [0, -1])
async def test_values_go_to_the_primary_and_from_it_and_no_key_is_left(count, primary):
    async def part(operation):
        gathered = await operation.gather("lists", b"%d" % operation.me)
        said = b"" if gathered is None else b",".join(gathered[p] for p in sorted(gathered))
        heard = await operation.broadcast("token", said or None)
        await operation.barrier("written")
        return heard, await operation.conclude(b"committed" if operation.is_primary else None)

    service = MemoryService()
    expected = (b",".join(b"%d" % i for i in range(count)), b"committed")
    for _ in range(2):  # the same name again
        found = await together(count, part, primary=primary % count, service=service)
        assert found == [expected] * count
    assert service.keys == []


@pytest.mark.parametrize("culprit", [0, 1, 2])
@pytest.mark.parametrize("phase", ["before", "work", "after"])
async def test_a_failure_in_any_phase_is_raised_everywhere_with_process_phase_and_message(
    culprit, phase
):
    async def part(operation):
        def maybe(now):
            if (operation.me, phase) == (culprit, now):
                raise KeyError("the leaf params.w")

        maybe("before")
        await operation.vote("plans", b"", lambda _: b"")
        operation.enter("the write")
        maybe("work")
        if operation.me != culprit and phase == "work":
            await operation.until_failure(asyncio.sleep(60))
        await operation.barrier("written")
        maybe("after")
        return await operation.conclude(b"done" if operation.is_primary else None)

    service = MemoryService()
    found = await together(3, part, service=service)
    assert isinstance(found[culprit], KeyError)
    for me in {0, 1, 2} - {culprit}:
        if phase == "after" and culprit != 0:
            assert found[me] == b"done" or isinstance(found[me], RemoteProcessError)
            continue
        assert isinstance(found[me], RemoteProcessError)
        assert found[me].process == culprit
        assert "save runs/x" in str(found[me])
        assert "the leaf params.w" in str(found[me])
        if phase == "work":
            assert found[me].phase == "the write"
    assert service.keys == []
    again = await together(3, lambda operation: operation.barrier("b"), service=service)
    assert again == [None] * 3


async def test_a_disagreement_is_the_same_error_everywhere():
    def judge(ballots):
        if len(set(ballots.values())) > 1:
            raise DisagreementError("process 1 has another tree than process 0: leaf 'b'")
        return b""

    async def part(operation):
        return await operation.vote("trees", b"b" if operation.me == 1 else b"a", judge)

    for error in await together(3, part):
        assert isinstance(error, DisagreementError)
        assert "leaf 'b'" in str(error)


async def test_a_process_that_does_not_come_is_named_and_the_others_are_told():
    async def part(operation):
        if operation.me == 2:
            await operation.until_failure(asyncio.sleep(60))
        return await operation.barrier("written")

    found = await together(3, part, deadline_s=0.3)
    assert isinstance(found[0], ProcessStalledError)
    assert found[0].processes == (2,)
    assert "written" in str(found[0])
    assert isinstance(found[1], RemoteProcessError)
    assert "process 2" in str(found[1])


async def test_a_process_that_gets_on_is_waited_for_beyond_the_deadline():
    async def part(operation):
        if operation.me == 2:
            for _ in range(20):
                await asyncio.sleep(0.05)
                operation.advance()
        await operation.barrier("written")
        return await operation.conclude(b"x" if operation.is_primary else None)

    assert await together(3, part, deadline_s=0.4) == [b"x"] * 3


async def test_a_primary_that_stalls_is_named_by_the_others():
    async def part(operation):
        if operation.is_primary:
            await asyncio.sleep(1.5)
        return await operation.broadcast("token", b"t" if operation.is_primary else None)

    found = await together(3, part, deadline_s=0.3)
    assert isinstance(found[0], RemoteProcessError)
    stalled = [error for error in found if isinstance(error, ProcessStalledError)]
    assert stalled
    assert all(error.processes == (0,) for error in stalled)


async def test_the_decision_of_the_primary_stands_if_another_gives_up_just_before_it_is_told():
    async def part(operation):
        await operation.barrier("written")
        if operation.me == 1:
            await asyncio.sleep(0.05)  # the primary is past the barrier
            raise OSError("gave up")
        await asyncio.sleep(0.2)
        return await operation.conclude(b"done" if operation.is_primary else None)

    found = await together(3, part)
    assert found[0] == b"done"
    assert isinstance(found[1], OSError)
    assert isinstance(found[2], RemoteProcessError)


async def test_two_operations_at_once_and_two_sets_of_processes_do_not_meet():
    service = MemoryService()

    async def part(operation):
        await asyncio.sleep(0.01 * operation.me)
        return await operation.vote("v", b"%d" % operation.me, lambda b: b"%d" % len(b))

    found = await asyncio.gather(
        together(4, part, name="save a", service=service),
        together(4, part, name="save b", service=service),
        together(2, part, name="save a", service=service),
    )
    assert found == [[b"4"] * 4, [b"4"] * 4, [b"2"] * 2]
    assert service.keys == []


@pytest.mark.parametrize("count", [10, 1000])
async def test_messages_grow_with_the_number_of_processes_and_no_faster(count):
    async def part(operation):
        await operation.vote("plans", b"", lambda _: b"")
        await operation.vote("token", b"", lambda _: b"")
        await operation.gather("lists", b"")
        return await operation.conclude(b"x" if operation.is_primary else None)

    service = MemoryService()
    assert await together(count, part, service=service) == [b"x"] * count
    assert service.calls.total() <= 8 * count + 60


def test_a_process_that_takes_no_part_is_refused():
    with pytest.raises(ValueError, match="must take part"):
        Coordinator(MemoryService(), me=3, processes=[0, 1], primary=0)


async def test_a_long_write_that_says_it_gets_on_is_waited_for():
    async def part(operation):
        if operation.me == 1:
            for _ in range(12):
                await asyncio.to_thread(time.sleep, 0.05)
                await asyncio.create_task(asyncio.to_thread(progress.note))
        await operation.barrier("written")
        return await operation.conclude(b"x" if operation.is_primary else None)

    assert await together(2, part, deadline_s=0.3) == [b"x"] * 2
    progress.note()  # nobody listens any more
