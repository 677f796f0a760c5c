"""A save by simulated processes, disturbed at every call to storage and coordinator in turn."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from holdfast_checkpointer.engine import together
from holdfast_checkpointer.engine.saving import write_step_documents
from holdfast_checkpointer.engine.together import JointSave
from holdfast_checkpointer.handlers.base import Item, ItemRecord
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.errors import CoordinationError
from holdfast_checkpointer.multihost.memory_service import MemoryService
from holdfast_local.backend import LocalBackend
from holdfast_metadata import CommitRecord, HoldfastError
from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import read_record
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash
from holdfast_storage.testing.tables import TableBackend
from integration.scale.model import Part

PROCESSES = 3
DEADLINE_S = 1.0
TOO_LONG_S = 20.0
SERVICE_FAULTS = ("fails", "loses its reply", "late", "cancel", "sent twice")


class Service:
    """One process's view of the coordinator; at one numbered call something happens."""

    def __init__(self, inner: MemoryService, me: int, job: Job) -> None:
        self._inner = inner
        self._me = me
        self._job = job
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any, **how: Any) -> Any:
            if self._job.views[self._me].crashed:
                await self._job.over.wait()  # the dead say nothing
                raise SimulatedCrash
            self.calls += 1
            fault = self._job.service_faults.get((self._me, self.calls))
            if fault == "fails":
                raise CoordinationError("injected: UNAVAILABLE")
            if fault == "loses its reply":
                await method(*args, **how)
                raise CoordinationError("injected: the reply was lost")
            if fault == "late":
                await asyncio.sleep(2 * DEADLINE_S)
            if fault == "cancel":
                self._job.tasks[self._me].cancel()
            if fault == "sent twice" and name == "put":
                await method(*args, **how)  # the reply was lost
            return await method(*args, **how)

        return call


@dataclass
class Job:
    """Processes that save one checkpoint together, in one store."""

    store: StorageBackend = field(default_factory=TableBackend)
    part: Callable[[int], Part] = Part
    service: MemoryService = field(default_factory=MemoryService)
    faults: dict[int, dict[int, Fault]] = field(default_factory=dict)
    service_faults: dict[tuple[int, int], str] = field(default_factory=dict)
    views: list[FaultyBackend] = field(default_factory=list)
    services: list[Service] = field(default_factory=list)
    tasks: list[asyncio.Task[CommitRecord]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    number: int = field(default_factory=functools.partial(next, itertools.count()))

    def going_on(self) -> Job:
        """The same job, in which nothing goes wrong any more."""
        return Job(store=self.store, service=self.service, number=self.number)

    async def run(self) -> list[Any]:
        """What each process returned or raised; None for the dead."""
        for me in range(PROCESSES):
            self.views.append(FaultyBackend(self.store, self.faults.get(me)))
            self.services.append(Service(self.service, me, self))
        self.tasks = [asyncio.create_task(self._save(me)) for me in range(PROCESSES)]
        await self._until_the_living_ended()
        alive = [me for me in range(PROCESSES) if not self.views[me].crashed]
        assert all(self.tasks[me].done() for me in alive), "a process hangs"
        self.over.set()
        await asyncio.wait(self.tasks)
        return [_outcome(self.tasks[me]) if me in alive else None for me in range(PROCESSES)]

    async def _until_the_living_ended(self) -> None:
        until = time.monotonic() + TOO_LONG_S
        while time.monotonic() < until:
            pending = zip(self.views, self.tasks, strict=True)
            if all(task.done() or view.crashed for view, task in pending):
                return
            await asyncio.sleep(0.02)

    @property
    def dies(self) -> bool:
        """Whether a process is to die."""
        return any(Fault.CRASH in faults.values() for faults in self.faults.values())

    async def _save(self, me: int) -> CommitRecord:
        coordinator = Coordinator(
            self.services[me],
            me=me,
            processes=range(PROCESSES),
            primary=0,
            deadline_s=DEADLINE_S,
            prefix=f"job {self.number}",
        )
        items = {"state": Item(self.part(me), "a handler")}

        async def documents(area: Any) -> None:
            await write_step_documents(area, "7", {"state": ""}, None, marker=True, started=0)

        async with coordinator.operation("save 7", call=coordinator.call()) as operation:
            save = JointSave(operation, self.views[me], "7", items, replace=False)
            await save.agree()
            return await (save.lead(documents, replace=False) if me == 0 else save.follow())


def _outcome(task: asyncio.Task[Any]) -> Any:
    if task.cancelled():
        return asyncio.CancelledError()
    return task.exception() or task.result()


async def check(job: Job, told: Any) -> None:
    """What must hold whatever happened."""
    found = await job.run()
    stored = await read_record(job.store, "7")
    committed = stored.committed
    for me, said in enumerate(found):
        if isinstance(said, CommitRecord):
            assert committed, (told, me, "was told of a checkpoint that is not there")
        elif said is not None:
            assert isinstance(said, HoldfastError | asyncio.CancelledError), (told, me, said)
    if isinstance(found[0], Exception) and not isinstance(found[0], errors.CommitUnknownError):
        assert not committed, (told, found)
    if committed and not job.dies and not job.service_faults:
        assert all(isinstance(said, CommitRecord) for said in found), (told, found)
    files = [info.key async for info in job.store.walk("")]
    if not committed and not job.dies and not isinstance(found[0], errors.CommitUnknownError):
        # What may stay: a fence, by which the attempt can never be committed, and a mark that
        # nobody knows to be there, which the next start sweeps.
        left = {keys.leaf(key) for key in files}
        assert left <= {"_COMMIT.json", "_ATTEMPT.json"}, (told, found)
    if not committed:  # the same place can be saved to again at once
        next_job = Job(store=job.store)
        again = await (next_job if job.dies else job.going_on()).run()
        assert all(isinstance(said, CommitRecord) for said in again), (told, again)
        assert (await read_record(job.store, "7")).committed


async def at_once(cases: list[tuple[Any, Callable[[], Job]]]) -> None:
    """Checks every case, all in one process and at the same time."""
    async with asyncio.TaskGroup() as group:
        for told, make in cases:
            group.create_task(check(make(), told))


class Sleeping(Part):
    """Process 1 fails; process 2 stands still and hears of it when nobody waits for it any more."""

    async def write(self, area: Any) -> ItemRecord:
        if self.process == 1:
            raise errors.StorageError("full")
        if self.process == 2:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(TOO_LONG_S)
            await asyncio.sleep(1.0)
        return await super().write(area)


async def calls_of_a_save() -> tuple[list[int], list[int]]:
    """How many mutations of the store, and calls to the coordinator, each process makes."""
    job = Job()
    found = await job.run()
    assert all(isinstance(said, CommitRecord) for said in found), found
    assert job.service.keys == []
    return [len(view.calls) for view in job.views], [each.calls for each in job.services]


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(together, "_STOPPING_PATIENCE_S", 0.3)


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.REFUSE, Fault.LOSE_REPLY, Fault.DELAY])
async def test_storage_fails_or_a_process_dies_at_every_mutation(fault):
    mutations, _ = await calls_of_a_save()
    assert min(mutations) >= 2
    cases = [
        ((fault, me, number), lambda me=me, n=number: Job(faults={me: {n: fault}}))
        for me in range(PROCESSES)
        for number in range(1, mutations[me] + 1)
    ]
    await at_once(cases)


@pytest.mark.parametrize("fault", SERVICE_FAULTS)
async def test_the_coordinator_fails_or_the_save_is_stopped_at_every_call(fault):
    _, calls = await calls_of_a_save()
    cases = [
        ((fault, me, number), lambda me=me, n=number: Job(service_faults={(me, n): fault}))
        for me in range(PROCESSES)
        for number in range(1, calls[me] + 1)
    ]
    await at_once(cases)


@pytest.mark.parametrize("kind", ["a record decides", "a put decides", "a rename decides", "files"])
async def test_who_wakes_after_a_failed_attempt_was_removed_leaves_nothing_of_it(kind, tmp_path):
    store = {
        "a record decides": TableBackend,
        "a put decides": functools.partial(TableBackend, decided=True),
        "a rename decides": functools.partial(TableBackend, rename=True),
        "files": functools.partial(LocalBackend, str(tmp_path)),
    }[kind]()
    job = Job(store=store, part=Sleeping)
    found = await job.run()
    assert isinstance(found[1], errors.StorageError)
    assert [getattr(said, "process", None) for said in found] == [1, None, 1]
    left = {keys.leaf(info.key) async for info in store.walk("")}
    assert left <= {"_COMMIT.json", ".7.commit"}  # by which it can never be committed
    assert job.service.keys == []
    again = await job.going_on().run()
    assert all(isinstance(said, CommitRecord) for said in again), again


async def one_after_another(seed: int, mutations: list[int], calls: list[int]) -> None:
    """Saves of one job that go wrong here and there, until one goes right.

    The coordinator fails a process once in each: who fails and then cannot tell of it is not
    understood by the others, and may count the save where they do not.
    """
    draw = random.Random(seed)
    job = Job()
    told = []
    for _ in range(3):
        job = job.going_on()
        me, other = draw.randrange(PROCESSES), draw.randrange(PROCESSES)
        kind = draw.choice((Fault.REFUSE, Fault.LOSE_REPLY, Fault.DELAY))
        job.faults = {me: {draw.randint(1, mutations[me]): kind}}
        job.service_faults = {(other, draw.randint(1, calls[other])): draw.choice(SERVICE_FAULTS)}
        await job.run()
        told.append((job.faults, job.service_faults))
        if (await read_record(job.store, "7")).committed:
            return
    again = await job.going_on().run()
    assert all(isinstance(said, CommitRecord) for said in again), (seed, told, again)


async def test_after_failures_of_every_mixture_the_same_job_can_save_again_at_once():
    mutations, calls = await calls_of_a_save()
    async with asyncio.TaskGroup() as group:
        for seed in range(30):
            group.create_task(one_after_another(seed, mutations, calls))
