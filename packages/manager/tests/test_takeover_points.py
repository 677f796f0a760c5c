"""A writer that is taken over while it is paused, before each of its calls that change something.

The next writer opens the run, is refused, takes it over, and decides about the same steps. When
the first goes on after that, nothing changes any more: no step of the new is lost or replaced,
none of the old comes in, none comes back or goes. And the first is told that it lost the run.
"""

import asyncio
import concurrent.futures
import contextlib
import itertools

import pytest
from packages.manager.tests.world import STORES, World

from holdfast_checkpointer.args import JsonSave
from holdfast_manager.errors import StepNotFoundError
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.training import Trash
from holdfast_metadata import PINS_DIR
from holdfast_storage import LeaseHeldError, LeaseLostError, get_loop, keys
from holdfast_storage.testing.faulty import Fault
from holdfast_storage.testing.history import litter

BEFORE = {1: 1, 2: 2, 3: 3}
OLD, NEW = 100, 200


def listed(world):
    """What a process that comes later lists and can load; a hint may be stale."""
    run = world.open()
    found = {}
    for entry in run.checkpoints:
        with contextlib.suppress(StepNotFoundError):
            found[entry.step] = run.load_checkpointables(entry)["x"]["version"]
    return found


def save(run, step, version, **how):
    return run.save_checkpointables(step, {"x": JsonSave({"version": version})}, **how)


class Work:
    """What a writer does; its saves are told apart by their versions.

    Attributes:
        options: How it opens the run.
        litter: Folders in which something may be left.
    """

    options = {}
    litter = (PINS_DIR,)

    def act(self, run):
        raise NotImplementedError

    def done(self, stored):
        """Whether that has come about."""
        return OLD in stored.values()


class SaveThatCollects(Work):
    options = {"preservation_policy": LatestN(1)}

    def act(self, run):
        save(run, 4, OLD)
        run.wait()


class Overwrite(Work):
    def act(self, run):
        save(run, 3, OLD, overwrite=True)


class SaveOfAnOlderStep(Work):
    def act(self, run):
        save(run, 0, OLD, force=True)


class Delete(Work):
    def act(self, run):
        run.delete(2)

    def done(self, stored):
        return 2 not in stored


class ToTheTrash(Delete):
    options = {"trash": Trash()}
    litter = (PINS_DIR, ".trash", "2")  # some stores keep the data where it was


WORK = [SaveThatCollects, Overwrite, SaveOfAnOlderStep, Delete, ToTheTrash]


class GoOn:
    """The next writer saves a later step, and collects."""

    options = {"preservation_policy": LatestN(2)}

    def act(self, run):
        assert save(run, 9, NEW)
        run.wait()


class DoOver:
    """The next writer saves anew whatever the first may be at."""

    options = {}

    def act(self, run):
        for step in (0, 2, 3, 4):
            assert save(run, step, NEW + step, overwrite=True, force=True)
        run.wait()


class LetBe:
    """The next writer saves another step, and lets those be that the first is about to remove."""

    options = {}

    def act(self, run):
        assert save(run, 9, NEW)
        run.wait()


def prepare(store):
    world = World(store)
    with world.processes.known_to_the_system():
        run = world.open()
        with run:
            for step, version in BEFORE.items():
                assert save(run, step, version)
            run.pin(1, "old")
    return world


async def until_paused(view, working):
    """Says whether the view paused before its process had done its work."""
    reached = asyncio.ensure_future(view.reached.wait())
    work = asyncio.wrap_future(working)
    work.add_done_callback(asyncio.Future.exception)  # told by `working`
    await asyncio.wait([reached, work], return_when=asyncio.FIRST_COMPLETED)
    reached.cancel()
    return view.reached.is_set()


async def go_on(view):
    view.resume.set()


@pytest.mark.parametrize("successor", [GoOn, DoOver, LetBe], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("work", WORK, ids=lambda kind: kind.__name__)
def test_who_is_taken_over_while_it_is_paused_changes_nothing_any_more(work, kind, successor):
    original = prepare(STORES[kind]())
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        for number in itertools.count(1):
            world = World.like(original)
            with world.processes.known_to_the_system():
                if not take_over_at(number, work(), world, successor(), threads):
                    break
    assert number > 3


def take_over_at(number, work, world, successor, threads):
    """One takeover; False if the first writer does not come so far."""
    view = world.processes.start()
    old = world.open(view, **work.options)
    view.fail_at(number, Fault.PAUSE)
    working = threads.submit(work.act, old)
    if not get_loop().run(until_paused(view, working)):
        working.result()
        get_loop().run(go_on(view))  # the deletion of data, perhaps, which runs behind
        view.faults = {}
        old.close()
        return False
    try:
        take_over(work, world, successor, view, old, working, has_lease=number > 1)
    finally:
        get_loop().run(go_on(view))  # else nobody would end the thread
    return True


def take_over(work, world, successor, view, old, working, *, has_lease):
    if has_lease:
        with pytest.raises(LeaseHeldError, match=f"process {view.pid} on"):
            save(world.open(), 9, NEW)
    before = world.stored()
    new = world.open(takeover=True, **successor.options)
    with new:
        successor.act(new)
        decided = world.stored()
        get_loop().run(go_on(view))
        told = working.exception(30)
        check_told(work, told, before, decided, has_lease=has_lease)
        with pytest.raises(LeaseLostError if has_lease else LeaseHeldError):
            save(old, 12, OLD)
        old.close()
        check_nothing_changed(world, decided)
        assert save(new, 11, NEW)
        new.wait()
        assert world.stored()[11] == NEW
    assert get_loop().run(left_behind(world, work)) == []


def check_told(work, told, before, decided, *, has_lease):
    """That what was to be done was done, or that the run is lost; never the wrong of the two."""
    if told is None:
        assert work.done(before) or work.done(decided), (before, decided)
    else:
        assert isinstance(told, LeaseLostError if has_lease else LeaseHeldError), repr(told)
        assert OLD not in decided.values(), "visible, though its writer was told that it is not"


def check_nothing_changed(world, decided):
    stored = world.stored()
    assert listed(world) == stored
    assert stored == decided


async def left_behind(world, work):
    left = await litter(world.store)
    return [key for key in left if not any(keys.is_under(key, folder) for folder in work.litter)]
