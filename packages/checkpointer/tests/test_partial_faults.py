"""Partial saves and their merge, stopped at every call: by a crash, a lost reply, or a pause."""

import asyncio

import numpy as np
import pytest

import holdfast as hf
from holdfast_checkpointer.engine import partial
from holdfast_checkpointer.functions import stage_state
from holdfast_checkpointer.options import Context
from holdfast_storage import errors, keys
from holdfast_storage.loop import get_loop
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash
from holdfast_storage.testing.history import until_paused

FIRST = {"a": {"w": np.arange(5)}, "n": 1}
SECOND = {"a": {"b": np.arange(7)}}
THIRD = {"c": "late"}


def listed(tree):
    return {
        name: {k: v.tolist() for k, v in value.items()} if isinstance(value, dict) else value
        for name, value in tree.items()
    }


BOTH = listed({"a": {**FIRST["a"], **SECOND["a"]}, "n": 1})

CRASHES = [("memory", Fault.CRASH), ("memory", Fault.LOSE_REPLY), ("local", Fault.CRASH)]
IN_MEMORY = pytest.mark.parametrize("place", ["memory"], indirect=True)


class Store:
    """A fresh final on a store, and what is done to it."""

    def __init__(self, place):
        self.place = place
        self.backend, self.final = hf.Context().locate(place)

    def view(self, number=0, fault=None):
        return FaultyBackend(self.backend, {number: fault} if number else None)

    async def save(self, view, tree):
        contents = stage_state(tree, "state", None, hf.Context(), marker=True)
        await partial.save_part(view, self.final, contents, Context())

    async def finalize(self, view):
        await partial.finalize(view, self.final)

    async def sweep(self, view):
        strategy = await view.commit_strategy()
        await strategy.sweep(keys.parent(self.final), older_than=0.0)

    def loaded(self):
        try:
            return listed(hf.load(self.place))
        except FileNotFoundError:
            return None

    async def leftovers(self):
        folder = keys.parent(self.final)
        found = {info.key async for info in self.backend.walk(folder)}
        spared = ("_ATTEMPT.json", "_COMMIT.json")
        hidden = {key for key in found if f"/.{keys.leaf(self.final)}." in key}
        return sorted(key for key in hidden if keys.leaf(key) not in spared)


@pytest.fixture
def stores(place):
    """Makes a store with a final of its own, as often as asked."""
    made = iter(range(1000))
    return lambda: Store(f"{place}/{next(made)}/m")


def run(action):
    return get_loop().run(action)


async def crash(action):
    """Runs to the end or to the crash; says whether it ended, and with what error."""
    try:
        await action
    except SimulatedCrash:
        return "crashed"
    except errors.StorageError as error:
        return type(error).__name__
    except ValueError as error:
        return type(error).__name__
    return "done"


def faults_of(stores, prepare, act):
    store = stores()
    prepare(store)
    view = store.view()
    run(act(store, view))
    return range(1, len(view.calls) + 1)


def both_saved(store):
    run(store.save(store.view(), FIRST))
    run(store.save(store.view(), SECOND))


@pytest.mark.parametrize(("place", "fault"), CRASHES, indirect=["place"])
def test_a_part_that_dies_anywhere_counts_whole_or_not_at_all(stores, fault):
    def first_saved(store):
        run(store.save(store.view(), FIRST))

    seen = set()
    for number in faults_of(stores, first_saved, lambda s, v: s.save(v, SECOND)):
        store = stores()
        first_saved(store)
        outcome = run(crash(store.save(store.view(number, fault), SECOND)))
        assert store.loaded() is None
        again = run(crash(store.save(store.view(), SECOND)))
        seen.add((outcome, again))
        # Whoever was told "done" is in; whoever crashed is in or can save again.
        assert again == ("PartialSaveReplacementError" if outcome == "done" else again)
        assert again in ("done", "PartialSaveReplacementError")
        run(store.finalize(store.view()))
        assert store.loaded() == BOTH
        assert run(store.leftovers()) in (
            [],
            [f"{keys.parent(store.final)}/.m.partial/00000004.json"],
        )
    assert len(seen) > 1 or fault is Fault.LOSE_REPLY


@pytest.mark.parametrize(("place", "fault"), CRASHES, indirect=["place"])
def test_a_merge_that_dies_anywhere_shows_all_or_nothing_and_can_be_repeated(stores, fault):
    seen = set()
    for number in faults_of(stores, both_saved, Store.finalize):
        store = stores()
        both_saved(store)
        outcome = run(crash(store.finalize(store.view(number, fault))))
        shown = store.loaded()
        assert shown in (None, BOTH)
        assert outcome != "done" or shown == BOTH
        again = run(crash(store.finalize(store.view())))
        seen.add((outcome, again))
        assert again in ("done", "CommitConflictError")
        assert store.loaded() == BOTH
        run(store.sweep(store.view()))
        left = run(store.leftovers())
        assert [key for key in left if "/part-" in key or "retired" in key] == []
        assert len(left) <= 1
        assert store.loaded() == BOTH
    assert ("crashed", "done") in seen or fault is Fault.LOSE_REPLY


@IN_MEMORY
@pytest.mark.parametrize("other", ["finalize", "save", "sweep"])
def test_a_merge_that_pauses_anywhere_meets_another_actor(stores, other):
    async def meet(store, number):
        view = store.view(number, Fault.PAUSE)
        actor = asyncio.ensure_future(crash(store.finalize(view)))
        paused = await until_paused(actor, view)
        told = await crash(
            {
                "finalize": lambda: store.finalize(store.view()),
                "save": lambda: store.save(store.view(), THIRD),
                "sweep": lambda: store.sweep(store.view()),
            }[other]()
        )
        view.resume.set()
        return paused, await actor, told

    pauses = 0
    for number in faults_of(stores, both_saved, Store.finalize):
        store = stores()
        both_saved(store)
        paused, outcome, told = run(meet(store, number))
        pauses += paused
        # A sweep that takes every writer for dead may stop it; it is called again then.
        stopped = ("AttemptLostError", "StorageError") if other == "sweep" else ()
        assert outcome in ("done", *stopped), (number, outcome)
        expected = {**BOTH, **THIRD} if (other, told) == ("save", "done") else BOTH
        if store.loaded() is None:
            run(store.finalize(store.view()))
        assert store.loaded() == expected, (number, outcome, told)
    assert pauses > 10


@IN_MEMORY
@pytest.mark.parametrize("other", ["save", "alike", "finalize", "sweep"])
def test_a_part_that_pauses_anywhere_meets_another_actor(stores, other):
    def first_saved(store):
        run(store.save(store.view(), FIRST))

    async def meet(store, number):
        view = store.view(number, Fault.PAUSE)
        actor = asyncio.ensure_future(crash(store.save(view, SECOND)))
        paused = await until_paused(actor, view)
        told = await crash(
            {
                "save": lambda: store.save(store.view(), THIRD),
                "alike": lambda: store.save(store.view(), SECOND),
                "finalize": lambda: store.finalize(store.view()),
                "sweep": lambda: store.sweep(store.view()),
            }[other]()
        )
        view.resume.set()
        return paused, await actor, told

    pauses = 0
    for number in faults_of(stores, first_saved, lambda s, v: s.save(v, SECOND)):
        store = stores()
        first_saved(store)
        paused, outcome, told = run(meet(store, number))
        pauses += paused
        counts = outcome == "done" or (other == "alike" and told == "done")
        mine = {"a": BOTH["a"]} if counts else {}
        theirs = THIRD if other == "save" else {}
        if other == "alike":
            assert {outcome, told} == {"done", "PartialSaveReplacementError"}
        if other == "save":
            assert (outcome, told) == ("done", "done")
        if store.loaded() is None:
            run(store.finalize(store.view()))
        assert store.loaded() == {**listed(FIRST), **mine, **theirs}, (number, outcome, told)
    assert pauses > 10
