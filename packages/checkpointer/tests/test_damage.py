"""Damage raises an error that names file and leaf. Nothing is ever filled in."""

import os

import jax.numpy as jnp
import numpy as np
import pytest

import holdfast_checkpointer as hc
from holdfast_storage import errors


@pytest.fixture
def saved(tmp_path):
    rng = np.random.default_rng(0)
    saving = hc.options.ArraySaveOptions(
        chunk_bytes=80_000
    )  # cuts evenly: no padding, which decides nothing
    tree = {
        "big": rng.random((200, 100)),
        "jax": jnp.asarray(rng.random((100, 100), np.float32)),
        "small": rng.random(2),
        "text": "hello",
    }
    context = hc.Context(array=hc.options.ArrayOptions(saving=saving))
    hc.save(tmp_path / "c", tree, context=context)
    return tmp_path / "c"


def files(saved):
    found = [p for p in sorted(saved.rglob("*")) if p.is_file() and p.name != "_ATTEMPT.json"]
    return [p for p in found if p.stat().st_size]


def test_a_flipped_bit_anywhere_is_found_or_changes_nothing(saved):
    """In every file, at places spread over it.

    Some bits decide nothing: the record's own time, and index nodes that OCDBT wrote and
    then replaced within one commit. What is loaded is then what was saved.
    """
    expected = hc.load(saved)
    unnoticed = []
    for path in files(saved):
        original = path.read_bytes()
        for position in sorted({*range(0, len(original), max(1, len(original) // 40))}):
            changed = bytearray(original)
            changed[position] ^= 4
            path.write_bytes(changed)
            try:
                report = hc.verify(saved)
            except (errors.RecordUnreadableError, errors.CheckpointNotFoundError):
                continue
            if report.ok:
                unnoticed.append((path.name, position))
                found = hc.load(saved)
                assert found["text"] == expected["text"]
                for name in ("big", "jax", "small"):
                    assert np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes()
        path.write_bytes(original)
    assert hc.verify(saved).ok
    assert len(unnoticed) < 25, unnoticed


def test_a_flipped_bit_of_an_array_names_the_leaf(saved):
    row = hc.load(saved)["big"][150].tobytes()
    # OCDBT divides the chunks among files as it finds time to.
    (path,) = [p for p in (saved / "state" / "d").iterdir() if row in p.read_bytes()]
    changed = bytearray(path.read_bytes())
    changed[changed.index(row) + 3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(errors.DamagedCheckpointError, match=r"\['big'\]") as caught:
        hc.load(saved)
    assert caught.value.leaf == "['big']"
    report = hc.verify(saved)
    assert not report.ok
    assert any("['big']" in problem for problem in report.problems)
    assert all("['jax']" not in problem for problem in report.problems)
    # What is not damaged can be had all the same.
    found = hc.load(saved, {"big": ..., "jax": None, "small": None, "text": str})
    assert found["text"] == "hello"


def test_a_missing_file_names_it(saved):
    for path in files(saved):
        if path.name == "_COMMIT.json":
            continue
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(errors.DamagedCheckpointError) as caught:
            hc.load(saved)
        assert path.name in str(caught.value) or path.name == "_MANIFEST.jsonl"
        assert hc.is_checkpoint(saved) is False
        assert not hc.verify(saved).ok
        path.write_bytes(content)
    assert hc.verify(saved).ok


def test_a_cut_off_file_names_it(saved):
    for path in files(saved):
        if path.name == "_COMMIT.json":
            continue
        content = path.read_bytes()
        os.truncate(path, len(content) - 1)
        with pytest.raises(errors.DamagedCheckpointError):
            hc.load(saved)
        path.write_bytes(content)


def test_swapped_files_are_found(saved):
    first, second = saved / "state" / "_METADATA", saved / "state" / "_sharding"
    a, b = first.read_bytes(), second.read_bytes()
    first.write_bytes(b)
    second.write_bytes(a)
    with pytest.raises(errors.DamagedCheckpointError):
        hc.load(saved)


def test_verification_can_be_declined(saved):
    loading = hc.options.ArrayLoadOptions(verify=False)
    assert hc.load(saved, context=hc.Context(array=hc.options.ArrayOptions(loading=loading)))
