"""One checkpoint saved in parts: by several calls, committed once."""

import collections
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import keys
from holdfast_storage.commit.sweep import StoreClock
from holdfast_storage.loop import get_loop

Moments = collections.namedtuple("Moments", ["mu", "nu"])


def parts():
    return [
        {"params": {"encoder": {"w": jnp.arange(6.0).reshape(2, 3)}}, "step": 3},
        {"params": {"decoder": {"w": np.ones((300, 400)), "b": jnp.zeros(3, jnp.bfloat16)}}},
        {"opt": (Moments({"w": np.full(3, 7)}, None), {}), "key": jax.random.key(3), "name": "é"},
    ]


def whole():
    first, second, third = parts()
    return {"params": {**first["params"], **second["params"]}, "step": 3, **third}


def same(found, saved):
    assert jax.tree.structure(found) == jax.tree.structure(saved)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(saved), strict=True):
        assert type(a) is type(b)
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.array_equal(a, b)
    return True


def test_parts_become_one_ordinary_checkpoint(place):
    for number, part in enumerate(parts()):
        hf.partial.save(f"{place}/m", part, custom_metadata={f"part {number}": number, "of": "m"})
        assert not hf.is_checkpoint(f"{place}/m")
    with pytest.raises(FileNotFoundError, match=r"call partial\.finalize"):
        hf.load(f"{place}/m")
    hf.partial.finalize(f"{place}/m")
    assert same(hf.load(f"{place}/m"), whole())
    assert same(hf.load(f"{place}/m", whole()), whole())
    report = hf.verify(f"{place}/m")
    assert report.ok
    assert report.arrays == 6
    found = hf.metadata(f"{place}/m")
    assert found.custom_metadata == {"part 0": 0, "part 1": 1, "part 2": 2, "of": "m"}
    assert found.metadata["params"]["decoder"]["w"].shape == (300, 400)
    assert found.orbax_readable == {"state": None}


def test_the_merge_of_chunks_is_by_reference_and_leaves_nothing_behind(tmp_path):
    for part in parts():
        hf.partial.save(tmp_path / "m", part)
    assert os.listdir(tmp_path) == [".m.partial"]
    hf.partial.finalize(tmp_path / "m")
    assert os.listdir(tmp_path) == ["m"]
    item = tmp_path / "m" / "state"
    index = sum(path.stat().st_size for path in (item / "d").iterdir())
    data = sum(p.stat().st_size for p in item.glob("ocdbt.part_*/d/*"))
    assert index < 10_000 < 300 * 400 * 8 < data < 300 * 400 * 8 + 50_000


def test_one_part_is_as_good_as_a_save(place):
    hf.partial.save(f"{place}/one", whole())
    hf.partial.finalize(f"{place}/one")
    assert same(hf.load(f"{place}/one"), whole())


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"a": {"b": 2}}, r"\['a'\]\['b'\]: saved already"),
        ({"a": {"b": {"c": 2}}}, r"\['a'\]\['b'\]: a leaf \(int\), in which .*\['c'\] cannot lie"),
        ({"a": 3}, r"\['a'\]: a leaf \(int\), in which \['a'\]\['b'\] cannot lie"),
        ({"e": {"x": 1}}, r"\['e'\]: an empty dict, in which \['e'\]\['x'\] cannot lie"),
        ({"e": {}}, r"\['e'\]: saved already"),
        ({"n": 1}, r"\['n'\]: saved already"),
        ({"a": [1]}, "cannot be joined"),
        ({"z": 1, "l": [1]}, r"\['l'\]\[0\]: saved already"),
        (np.ones(3), "in which"),
        ({}, "in which"),
    ],
    ids=str,
)
def test_what_another_part_holds_is_refused_before_anything_is_written(place, second, message):
    first = {"a": {"b": 1}, "e": {}, "n": None, "l": [5]}
    hf.partial.save(f"{place}/m", first)
    with pytest.raises(hf.errors.PartialSaveReplacementError, match=message) as caught:
        hf.partial.save(f"{place}/m", second)
    assert caught.value.problems
    assert isinstance(caught.value, ValueError)
    hf.partial.save(f"{place}/m", {"a": {"c": 2}})
    hf.partial.finalize(f"{place}/m")
    assert hf.load(f"{place}/m") == {"a": {"b": 1, "c": 2}, "e": {}, "n": None, "l": [5]}


def test_a_refused_part_leaves_no_file(tmp_path):
    hf.partial.save(tmp_path / "m", {"a": 1})
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="saved already"):
        hf.partial.save(tmp_path / "m", {"a": 2})
    with pytest.raises(ValueError, match="custom_metadata"):
        hf.partial.save(tmp_path / "m", {"b": 2}, custom_metadata={1: 2})
    with pytest.raises(ValueError, match="cannot be saved"):
        hf.partial.save(tmp_path / "m", {"b": object()})
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before


def test_custom_metadata_of_two_parts_must_agree(place):
    hf.partial.save(f"{place}/m", {"a": 1}, custom_metadata={"run": 1})
    with pytest.raises(hf.errors.PartialSaveReplacementError, match=r"\['run'\]: 2 and 1"):
        hf.partial.save(f"{place}/m", {"b": 1}, custom_metadata={"run": 2})


def test_names_that_collide_in_the_store_only_are_kept_apart(place):
    hf.partial.save(f"{place}/m", {"a.b": np.arange(3), "c": np.arange(2)})
    hf.partial.save(f"{place}/m", {"a": {"b": np.arange(4)}})
    hf.partial.finalize(f"{place}/m")
    found = hf.load(f"{place}/m")
    assert found["a.b"].tolist() == [0, 1, 2]
    assert found["a"]["b"].tolist() == [0, 1, 2, 3]
    assert "same parameter name" in hf.metadata(f"{place}/m").orbax_readable["state"]


def test_a_path_that_is_taken_is_refused_and_one_without_parts_is_not_found(place):
    with pytest.raises(FileNotFoundError, match=r"partial\.save"):
        hf.partial.finalize(f"{place}/m")
    hf.save(f"{place}/m", {"a": 1})
    for call in (lambda: hf.partial.save(f"{place}/m", {"b": 1}), lambda: finalize(place)):
        with pytest.raises(FileExistsError):
            call()
    hf.partial.save(f"{place}/late", {"b": 1})
    hf.save(f"{place}/late", {"a": 1})
    with pytest.raises(FileExistsError):
        hf.partial.finalize(f"{place}/late")
    assert hf.load(f"{place}/late") == {"a": 1}


def finalize(place):
    hf.partial.finalize(f"{place}/m")


def test_a_name_is_free_again_after_its_checkpoint_is_deleted(place):
    for n in range(2):
        hf.partial.save(f"{place}/m", {"a": n})
        hf.partial.save(f"{place}/m", {"b": np.full(4, n)})
        finalize(place)
        with pytest.raises(FileExistsError):
            finalize(place)
        assert hf.load(f"{place}/m")["a"] == n
        assert hf.load(f"{place}/m")["b"].tolist() == [n] * 4
        hf.delete(f"{place}/m")
    with pytest.raises(FileNotFoundError):
        finalize(place)


def test_items_are_saved_by_different_calls_and_trees_by_several(place):
    config = hf.args.JsonSave({"layers": 3})
    hf.partial.save_checkpointables(f"{place}/m", {"model": {"a": 1}, "config": config})
    with pytest.raises(ValueError, match="item 'config': saved already"):
        hf.partial.save_checkpointables(f"{place}/m", {"config": config})
    response = hf.partial.save_checkpointables_async(f"{place}/m", {"model": {"b": 2}, "ema": 3})
    response.result()
    finalize(place)
    found = hf.load_checkpointables(f"{place}/m")
    assert found == {"model": {"a": 1, "b": 2}, "config": {"layers": 3}, "ema": 3}


def test_a_list_grows_only_where_its_elements_do_not_meet(place):
    hf.partial.save(f"{place}/m", {"layers": [{"w": 1}, {"w": 2}]})
    hf.partial.save(f"{place}/m", {"layers": [{"b": 3}, {"b": 4}, {"b": 5}]})
    finalize(place)
    assert hf.load(f"{place}/m") == {"layers": [{"w": 1, "b": 3}, {"w": 2, "b": 4}, {"b": 5}]}


def test_parts_of_other_processes_count_and_so_do_those_before_a_restart(tmp_path):
    script = (
        "import sys, numpy as np, holdfast as hf\n"
        "hf.partial.save(sys.argv[1], {sys.argv[2]: np.full(3, int(sys.argv[3]))})\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "m"), name, str(n)])
        for n, name in enumerate("ab")
    ]
    assert [process.wait() for process in running] == [0, 0]
    hf.partial.save(tmp_path / "m", {"c": 5})
    hf.partial.finalize(tmp_path / "m")
    found = hf.load(tmp_path / "m")
    assert (found["a"].tolist(), found["b"].tolist(), found["c"]) == ([0] * 3, [1] * 3, 5)


def test_parts_that_are_saved_at_once_all_count_and_of_two_alike_one_is_refused(place):
    responses = [hf.partial.save_async(f"{place}/m", {f"k{n}": np.arange(n)}) for n in range(4)]
    twins = [hf.partial.save_async(f"{place}/m", {"twin": n, f"t{n}": n}) for n in range(2)]
    for response in responses:
        response.result()
    failed = [response.exception() for response in twins]
    (refused,) = [error for error in failed if error is not None]
    assert isinstance(refused, hf.errors.PartialSaveReplacementError)
    finalize(place)
    found = hf.load(f"{place}/m")
    assert set(found) == {"k0", "k1", "k2", "k3", "twin", f"t{found['twin']}"}


def sweep(place, older_than=0.0):
    backend, final = hf.Context().locate(f"{place}/m")

    async def run():
        strategy = await backend.commit_strategy()
        return await strategy.sweep(keys.parent(final), older_than=older_than)

    return get_loop().run(run())


def test_a_sweep_spares_parts_for_seven_days_whatever_became_of_their_writer(place, monkeypatch):
    hf.partial.save(f"{place}/m", {"a": 1})
    (spared,) = sweep(place).spared
    assert "not finalized yet" in spared[1]
    week = 7 * 24 * 3600
    real = StoreClock.age
    for days, removed in ((6.9, False), (7.1, True)):

        async def later(clock, modified, days=days):
            return await real(clock, modified) + days * week / 7

        monkeypatch.setattr(StoreClock, "age", later)
        assert bool(sweep(place).removed) is removed
    with pytest.raises(FileNotFoundError):
        finalize(place)
    monkeypatch.undo()
    hf.partial.save(f"{place}/m", {"b": 2})
    finalize(place)
    assert hf.load(f"{place}/m") == {"b": 2}


def test_a_damaged_part_is_noticed_and_nothing_becomes_visible(tmp_path):
    hf.partial.save(tmp_path / "m", {"a": np.arange(5)})
    hf.partial.save(tmp_path / "m", {"b": np.arange(5)})
    tree = next((tmp_path / ".m.partial").glob("part-*/state/_TREE.json"))
    tree.write_bytes(tree.read_bytes().replace(b"int64", b"int32"))
    with pytest.raises(hf.errors.DamagedCheckpointError, match="_TREE.json"):
        hf.partial.finalize(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_a_layout_that_is_no_checkpoint_is_refused(place):
    tensors = hf.Context(checkpoint_layout="safetensors")
    with pytest.raises(NotImplementedError, match=r"^partial\.save knows no"):
        hf.partial.save(place, {"a": 1}, context=tensors)
    with pytest.raises(NotImplementedError, match="save_checkpointables knows no"):
        hf.partial.save_checkpointables(place, {"s": {"a": 1}}, context=tensors)
    with pytest.raises(FileNotFoundError, match="nothing was saved"):
        hf.partial.finalize(place)
