"""A process that dies, or loses a reply, at each of its calls that change something.

Afterwards a fresh process lists only whole steps, has lost none that was reported, and what
the dead one left goes with the next save and one sweep more.
"""

import contextlib
import itertools

import pytest
from packages.manager.tests.world import STORES, World

from holdfast_checkpointer.args import JsonSave
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.training import Trash
from holdfast_metadata import LEASE_DIR, PINS_DIR, QUARANTINE_DIR
from holdfast_storage import StorageError, get_loop, keys
from holdfast_storage.testing.faulty import Fault, SimulatedCrash
from holdfast_storage.testing.history import litter

TRASH = ".trash"


def save(run, step, version, **how):
    return run.save_checkpointables(
        step, {"x": JsonSave({"step": step, "version": version})}, **how
    )


def contents(run):
    """What is listed, loaded."""
    found = {}
    for entry in run.checkpoints:
        loaded = run.load_checkpointables(entry)["x"]
        assert loaded["step"] == entry.step
        found[entry.step] = loaded["version"]
    return found


class Scenario:
    """An operation on a run of the steps 1, 2 and 3, where 1 is pinned as `old`.

    Attributes:
        before: The versions of the steps when it begins.
        after: Those when it has been done.
        options: How the run is opened.
        leased: Whether it takes the lease first, and lets it go in the end.
    """

    before = {1: 1, 2: 2, 3: 3}
    after = before
    options = {}
    pins = ({"old": 1}, {"old": 1})
    leased = True

    def prepare(self, world):
        with world.open() as run:
            for step, version in self.before.items():
                assert save(run, step, version)
            run.pin(1, "old")

    def act(self, world, run):
        raise NotImplementedError

    def between(self, found):
        """Whether this may be seen after a death; the order in which steps go is free."""
        return all(
            found.get(step) in (self.before.get(step), self.after.get(step))
            for step in found.keys() | self.before.keys() | self.after.keys()
        )


class SaveThatCollects(Scenario):
    after = {1: 1, 4: 4}
    options = {"preservation_policy": LatestN(1)}

    def act(self, world, run):
        assert save(run, 4, 4, metrics={"loss": 1.0})
        run.wait()

    def between(self, found):
        # Nothing goes before the new step is committed.
        return super().between(found) and (4 in found or found == self.before)


class Overwrite(Scenario):
    after = {1: 1, 2: 2, 3: 30}

    def act(self, world, run):
        assert save(run, 3, 30, overwrite=True)


class SaveOfAnOlderStep(Scenario):
    after = {0: 7, 1: 1, 2: 2, 3: 3}

    def act(self, world, run):
        assert save(run, 0, 7, force=True)


class Delete(Scenario):
    after = {1: 1, 3: 3}

    def act(self, world, run):
        assert run.delete(2)


class DeleteOfTheNewest(Scenario):
    after = {1: 1, 2: 2}

    def act(self, world, run):
        assert run.delete(3)


class Pinning(Scenario):
    pins = ({"old": 1}, {"old": 1, "new": 2})
    leased = False

    def act(self, world, run):
        run.pin(2, "new")


class Unpinning(Scenario):
    pins = ({"old": 1}, {})
    leased = False

    def act(self, world, run):
        run.unpin("old")


class SweepAfterADeath(Scenario):
    """What a dead overwrite, a dead save and a dead removal left goes with the next save."""

    after = {1: 1, 2: 2, 3: 3, 4: 4}

    def prepare(self, world):
        super().prepare(world)
        for work, fatal in ((self._overwrite, 4), (self._save, 6), (self._delete, 4)):
            view = world.processes.start()
            run = world.open(view)
            view.fail_at(fatal, Fault.CRASH)
            with pytest.raises(SimulatedCrash):
                work(world, run)
        self.before = world.stored()
        self.after = {**self.before, 4: 4}
        assert self.before.keys() >= {1, 3}

    def _overwrite(self, world, run):
        save(run, 3, 31, overwrite=True)

    def _save(self, world, run):
        save(run, 9, 9)

    def _delete(self, world, run):
        run.delete(2)
        run.wait()
        run.close()
        raise SimulatedCrash

    def act(self, world, run):
        assert save(run, 4, 4)
        run.wait()
        run.close()


class SaveOverAQuarantinedStep(Scenario):
    """It takes the place of a damaged step without being told to overwrite."""

    before = {1: 1, 2: 2}
    after = {1: 1, 2: 2, 3: 30}

    def prepare(self, world):
        self.before, before = super().after, self.before
        super().prepare(world)
        self.before = before
        world.damaged = {3}
        key = next(key for key in world.store.objects if key.startswith("3/") and "x/" in key)
        get_loop().run(world.store.put(key, b"{}"))
        with world.open() as run:
            run.load_checkpointables(fallback=True)
            assert list(run.quarantined) == [3]

    def act(self, world, run):
        assert save(run, 3, 30)


class TakingTheLeaseOfADeadSave(Scenario):
    """What it was about to commit is fenced first."""

    after = {1: 1, 2: 2, 3: 3, 4: 4}

    def prepare(self, world):
        super().prepare(world)
        fatal = first_call(world, self.dying, self.is_fatal)
        view = world.processes.start()
        run = world.open(view)
        view.fail_at(fatal, Fault.CRASH)
        with pytest.raises(SimulatedCrash):
            self.dying(world, run)

    def dying(self, world, run):
        save(run, 3, 31, overwrite=True)

    def is_fatal(self, call):
        return call.operation in ("exchange", "rename") or call.key == "3/_COMMIT.json"

    def act(self, world, run):
        assert save(run, 4, 4)


class TakingTheLeaseOfADeadRemoval(TakingTheLeaseOfADeadSave):
    """A step that was about to be removed is there, or it is not."""

    def prepare(self, world):
        super().prepare(world)
        self.before = world.stored()
        self.after = {**self.before, 4: 4}

    def dying(self, world, run):
        run.delete(2)

    def is_fatal(self, call):
        return call.operation == "rename" or call.key == "2/_COMMIT.json"


def first_call(world, work, wanted):
    """The number of the first call of some work that is of a kind."""
    world = World.like(world)
    view = world.processes.start()
    run = world.open(view)
    work(world, run)
    run.close()
    return next(call.number for call in view.calls if wanted(call))


class ToTheTrash(Scenario):
    after = {1: 1, 3: 3}
    options = {"trash": Trash()}

    def act(self, world, run):
        assert run.delete(2)

    def recover(self, world, run):
        """What is not listed can be brought back."""
        if 2 not in self.seen:
            run.restore_from_trash(2)
        assert world.stored() == self.before


class FromTheTrash(ToTheTrash):
    before = {1: 1, 3: 3}
    after = {1: 1, 2: 2, 3: 3}

    def prepare(self, world):
        with world.open(**self.options) as run:
            for step, version in self.after.items():
                assert save(run, step, version)
            run.pin(1, "old")
            assert run.delete(2)

    def act(self, world, run):
        run.restore_from_trash(2)

    def recover(self, world, run):
        if 2 not in self.seen:
            run.restore_from_trash(2)
        assert world.stored() == self.after


SCENARIOS = [
    SaveThatCollects,
    Overwrite,
    SaveOfAnOlderStep,
    Delete,
    DeleteOfTheNewest,
    Pinning,
    Unpinning,
    SweepAfterADeath,
    SaveOverAQuarantinedStep,
    TakingTheLeaseOfADeadSave,
    TakingTheLeaseOfADeadRemoval,
    ToTheTrash,
    FromTheTrash,
]


def run_with_a_fault(scenario, world, number, fault):
    """Does it; says whether it was reported as done, and whether the fault was reached."""
    view = world.processes.start()
    run = world.open(view, **scenario.options)
    view.fail_at(number, fault)
    reported = True
    try:
        scenario.act(world, run)
    except (SimulatedCrash, StorageError):
        reported = False
    if not view.crashed:  # what runs behind may still come upon it
        with contextlib.suppress(SimulatedCrash, StorageError):
            run.close()
    reached = len(view.calls) >= number
    if not reached and scenario.leased:
        assert view.calls[0].key.startswith(LEASE_DIR)
        assert view.calls[-1].key.startswith(LEASE_DIR)
    view.die()
    return reported, reached


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOSE_REPLY], ids=["death", "lost reply"])
@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda kind: kind.__name__)
def test_nothing_is_torn_or_lost_and_what_is_left_goes(scenario, kind, fault):
    scenario, original = scenario(), World(STORES[kind]())
    with original.processes.known_to_the_system():
        scenario.prepare(original)
    for number in itertools.count(1):
        world = World.like(original)
        with world.processes.known_to_the_system():
            reported, reached = run_with_a_fault(scenario, world, number, fault)
            check(scenario, world, reported=reported)
        if not reached:
            assert reported
            break
    assert number > 1


def check(scenario, world, *, reported):
    reader = world.open()
    scenario.seen = contents(reader)
    assert scenario.between(scenario.seen), scenario.seen
    assert (
        not reported
        or scenario.seen.items() >= dict(scenario.after).items()
        or (
            # What a policy lets go may go later, when a fault has spared it.
            scenario.seen.keys() >= scenario.after.keys()
        )
    )
    assert reader.pins in scenario.pins
    assert not reported or reader.pins == scenario.pins[1]
    with world.open(**scenario.options) as run:
        if hasattr(scenario, "recover"):
            scenario.recover(world, run)
        now = world.stored()
        assert [entry.step for entry in run.checkpoints] == sorted(now)
        assert save(run, 50, 50)
        run.wait()
        kept = world.stored()
    assert kept[50] == 50
    assert kept.items() <= {**now, 50: 50}.items()
    assert "preservation_policy" in scenario.options or len(kept) == len(now) + 1
    left = get_loop().run(litter(world.store))
    spared = (PINS_DIR, TRASH) if scenario.options.get("trash") else (PINS_DIR,)
    marks = {f"{QUARANTINE_DIR}/{step}" for step in world.damaged - kept.keys()}
    left = [key for key in left if not any(keys.is_under(key, p) for p in spared)]
    assert set(left) == marks
    assert world.stored() == kept
