"""A file of Orbax's that is missing or cut short is told, and never filled in."""

import shutil

import pytest

import holdfast as hf
from integration.interop.orbax_writers import FORMATS
from integration.interop.trees import CASES, differences

CONFIGURATIONS = [name for name in FORMATS if name.endswith("zstd")]
# Without these an array is still all there; where it lay, and that it was a key, is not.
SHARDING, KEYS = "_sharding", "array_metadatas/process_0"
UNUSED = ("commit_success.txt", "orbax.checkpoint", "ocdbt.process_0/manifest.ocdbt")


def tree():
    return {
        **{name: CASES["core"]().tree[name] for name in ("params", "numpy", "step")},
        "key": CASES["prng_keys"]().tree["threefry"],
        "text": "some text",
    }


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole")
    for name in CONFIGURATIONS:
        FORMATS[name](root / name, tree())
    return root


def damaged_copies(original, copy, damage):
    """One copy after the other, each with one file damaged; yields the file's name."""
    for file in sorted(found for found in original.rglob("*") if found.is_file()):
        name = str(file.relative_to(original)).removeprefix("state/")
        shutil.copytree(original, copy)
        damage(copy / file.relative_to(original))
        yield name
        shutil.rmtree(copy)


def outcome(path):
    """`same`, `told` (by an error of ours) or what differs in silence."""
    try:
        found = hf.load(path)
    except (hf.errors.HoldfastError, KeyError):
        return "told"
    return differences(found, tree()) or "same"


def may_be_unseen(name, problems):
    """Only what nothing in the checkpoint could tell: a key without its mark, a place."""
    lost = {KEYS: "['key']", SHARDING: "found"}.get(name)
    return lost is not None and all(lost in problem for problem in problems)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_missing_file_is_told_or_not_needed(originals, tmp_path, configuration):
    seen = {}
    for name in damaged_copies(originals / configuration, tmp_path / "copy", lambda f: f.unlink()):
        seen[name] = outcome(tmp_path / "copy")
        assert seen[name] in ("same", "told") or may_be_unseen(name, seen[name]), (name, seen[name])
    assert "told" in seen.values()
    needed = [n for n in seen if n not in (*UNUSED, SHARDING, KEYS, "_CHECKPOINT_METADATA")]
    for name in needed:
        if not name.startswith("ocdbt.process_0/d/"):  # B-tree nodes there are superseded
            assert seen[name] == "told", name


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_a_file_cut_short_is_told_or_not_needed(originals, tmp_path, configuration):
    def halve(file):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)

    for name in damaged_copies(originals / configuration, tmp_path / "copy", halve):
        assert outcome(tmp_path / "copy") in ("same", "told"), name
