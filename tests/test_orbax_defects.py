"""Defects of Orbax that concern saving and loading, by their numbers; here they are repaired.

Where a whole file is about one of them, the test here is the shortest that shows it.
"""

import asyncio
import threading
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf

o = hf.options
BAD = {
    "leaf": lambda path: hf.save(path, {"x": object()}, overwrite=True),
    "metadata": lambda path: hf.save(path, 1, overwrite=True, custom_metadata={"x": object()}),
    "name": lambda path: hf.save(path, 1, overwrite=True, checkpointable_name="a/b"),
    "item": lambda path: hf.save_checkpointables(path, {"x": object()}, overwrite=True),
    "handler": lambda path: hf.save_checkpointables(path, {"x": Failing()}, overwrite=True),
    "v0": lambda path: hf.Checkpointer(hf.StandardCheckpointHandler()).save(
        path, {"x": object()}, force=True
    ),
}


class Failing:
    """Saves half of itself, then fails."""

    async def save(self, directory):
        async def write():
            folder = await directory.await_creation()
            (folder / "half").write_text("half")
            raise OSError("the disk of the user's code is full")

        return write()

    async def load(self, directory):
        raise AssertionError("never saved")


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize("case", BAD)
def test_1_and_18_a_failed_overwrite_leaves_the_old_one_and_nothing_else(tmp_path, case):
    hf.save(tmp_path / "c", {"old": 1})
    with pytest.raises((ValueError, KeyError, TypeError, OSError)):
        BAD[case](tmp_path / "c")
    assert hf.load(tmp_path / "c") == {"old": 1}
    assert hf.verify(tmp_path / "c").ok
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("case", BAD)
def test_18_a_failed_save_leaves_nothing(tmp_path, case):
    with pytest.raises((ValueError, KeyError, TypeError, OSError)):
        BAD[case](tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


def test_2_an_overwrite_that_a_policy_declines_deletes_nothing(tmp_path):
    every_ten = hf.training.save_decision_policies.FixedIntervalPolicy(10)
    with hf.training.Checkpointer(tmp_path / "run", save_decision_policy=every_ten) as checkpointer:
        assert checkpointer.save(7, {"a": 1}, force=True)
        assert not checkpointer.save(7, {"a": 2}, overwrite=True)
        assert checkpointer.load(7) == {"a": 1}


def test_4_keys_that_orbax_takes_for_one_another_stay_apart(place):
    tree = {
        "a.b": 1, "a": {"b": 2, "": {"c": 3}}, "a/b": 4, "": 5, "x": {1: 6}, "y": {"1": 7},
        "z": [8, {"0": 9}], "%2E": 10, ".": 11,
    }  # fmt: skip
    hf.save(place, tree)
    assert hf.load(place) == tree


LEAVES = {
    "bytes": b"\x00\xff", "numpy scalar": np.float32(1.5), "zero size": np.zeros((0, 3)),
    "jax zero size": jnp.zeros((2, 0)), "big int": 2**200, "tuple": (1, (2,)),
    "namedtuple": Pair(1, Pair("a", None)), "empty": {}, "none inside": [None, {}],
}  # fmt: skip


@pytest.mark.parametrize("case", LEAVES)
def test_5_every_kind_of_leaf_and_container_comes_back_as_it_was(place, case):
    saved = LEAVES[case]
    hf.save(place, {"x": saved})
    found = hf.load(place, types=[Pair])["x"]
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert type(one) is type(other)
        np.testing.assert_array_equal(one, other)


def test_9_a_partial_load_invents_no_leaf_and_none_loads(place):
    hf.save(place, {"w": np.arange(3), "b": np.arange(2)})
    partial = o.PyTreeOptions(loading=o.PyTreeOptions.Loading(partial_load=True))
    context = hf.Context(pytree=partial)
    with pytest.raises(ValueError, match="absent"):
        hf.load(place, {"absent": jax.ShapeDtypeStruct((3,), int)}, context=context)
    found = hf.load(place, {"w": None}, context=context)
    np.testing.assert_array_equal(found["w"], np.arange(3))
    assert set(found) == {"w"}


def test_10_an_error_keeps_its_type_through_every_entry_point(tmp_path):
    hf.save(tmp_path / "c", {"w": jnp.ones(3)})
    target = {"w": jax.ShapeDtypeStruct((4,), jnp.float32)}
    for load in (
        lambda: hf.load(tmp_path / "c", target),
        lambda: hf.load_checkpointables(tmp_path / "c", {"state": target}),
        lambda: asyncio.run(wait(hf.load_checkpointables_async(tmp_path / "c", {"state": target}))),
    ):
        with pytest.raises(hf.errors.TreeMismatchError) as caught:
            load()
        assert not isinstance(caught.value, KeyError)


async def wait(response):
    return await response


def test_11_the_configuration_of_an_instance_beats_the_one_around_it(tmp_path):
    mine = hf.Context(array=o.ArrayOptions(saving=o.ArraySaveOptions(compression="zstd")))
    other = hf.Context(atomicity=o.AtomicityOptions(mode="commit_file"))  # refused on a disk
    with hf.training.Checkpointer(tmp_path / "run", context=mine) as checkpointer, other:
        assert checkpointer.save(1, {"w": np.zeros(100_000)})
        np.testing.assert_array_equal(checkpointer.load(1)["w"], np.zeros(100_000))
    files = [path for path in (tmp_path / "run" / "1").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 100_000


def test_12_of_two_writers_to_one_path_one_wins_and_the_other_is_told(place):
    together = threading.Barrier(2, timeout=60)
    outcomes = []

    def write(value):
        together.wait()
        try:
            hf.save(place, {"w": np.full(50_000, value)})
        except hf.errors.CommitConflictError as error:
            outcomes.append(error)
        else:
            outcomes.append(value)

    threads = [threading.Thread(target=write, args=(value,)) for value in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (won,) = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert len(outcomes) == 2
    np.testing.assert_array_equal(hf.load(place)["w"], np.full(50_000, won))
    assert hf.verify(place).ok


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_16_a_random_key_keeps_its_implementation(place, impl):
    key = jax.random.key(3, impl=impl)
    items = {"tree": {"k": key}, "item": hf.args.JaxRandomKeySave(key)}
    hf.save_checkpointables(place, items)
    found = hf.load_checkpointables(place)
    for loaded in (found["tree"]["k"], found["item"]):
        assert jax.random.key_impl(loaded) == jax.random.key_impl(key)
        assert (jax.random.bits(loaded) == jax.random.bits(key)).all()


def test_17_what_is_told_of_a_commit_is_told_after_it(place):
    seen = []
    told = o.AsyncOptions(post_finalization_callback=lambda: seen.append(hf.load(place)))
    context = hf.Context(asynchronous=told)
    hf.save(place, {"a": 1}, context=context)
    hf.save_checkpointables_async(
        place, {"state": {"a": 2}}, overwrite=True, context=context
    ).result()
    with hf.AsyncCheckpointer(hf.StandardCheckpointHandler(), context=context) as checkpointer:
        checkpointer.save(place, {"a": 3}, force=True)
        checkpointer.wait_until_finished()
    assert seen == [{"a": 1}, {"a": 2}, {"a": 3}]
