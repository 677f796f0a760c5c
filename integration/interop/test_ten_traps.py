"""The ten places where it is easiest to write what Orbax cannot read, one test each.

What can only be seen when Orbax loads it, with and without a target, is loaded in a fresh
process from a path to which the checkpoint was moved. Beyond that, each file is compared
with the one that Orbax writes for the same tree.
"""

import itertools
import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp0
import pytest
import tensorstore as ts
from orbax.checkpoint import v1 as ocp

import holdfast as hf
from integration.crash.worker import state
from integration.interop.trees import CASES, differences

CASES_HERE = (
    *("core", "containers", "odd_names", "bare_jax", "sharded", "prng_keys", "zeros"),
    *("scalars", "strings", "large"),
)


class Pair:
    """The same trees, by holdfast and by Orbax, and what Orbax said of ours."""

    def __init__(self, root, report):
        self._root = root
        self._report = report

    def ours(self, case):
        return self._root / "holdfast" / case / "state"

    def document(self, who, case, name):
        path = self._root / who / case / "state" / name
        return json.loads(path.read_text()) if path.exists() else None

    def both(self, case, name):
        return self.document("holdfast", case, name), self.document("orbax", case, name)

    def keys(self, who, case):
        spec = {"driver": "ocdbt", "base": f"file://{self._root / who / case / 'state'}/"}
        return {key.decode() for key in ts.KvStore.open(spec).result().list().result()}

    def assert_orbax_loads(self, *cases):
        for case in cases:
            for how in ("v1", "v1_target"):
                assert self._report[f"{case}-{how}"] == []


@pytest.fixture(scope="module")
def pair(tmp_path_factory, read_with_orbax):
    root = tmp_path_factory.mktemp("traps")
    for case in CASES_HERE:
        tree = CASES[case]().tree
        hf.save(root / "written" / case, tree)
        ocp.save(root / "orbax" / case, tree)
    moved = (root / "written").rename(root / "holdfast")
    return Pair(
        root,
        read_with_orbax(
            [
                {"id": f"{case}-{how}", "how": how, "case": case, "path": str(moved / case)}
                for case, how in itertools.product(CASES_HERE, ("v1", "v1_target"))
            ]
        ),
    )


def test_trap_1_the_item_holds_the_whole_database(pair):
    pair.assert_orbax_loads("core", "large")
    for case in ("core", "large"):
        folder = pair.ours(case)
        base = ts.KvStore.open(f"file://{folder}/").result()
        (*_, last) = ts.ocdbt.dump(base).result()["versions"]
        assert last["root_height"] == 0
        node = ts.ocdbt.dump(base, last["root"]["location"]).result()
        pointed = [e["indirect_value"] for e in node["entries"] if "indirect_value" in e]
        assert pointed, "every value is inline: the trap would not be seen"
        for value in pointed:
            kind, _, rest = value.partition("::")
            name, offset, length = rest.rsplit(":", 2)
            assert kind == "value"
            assert int(offset) + int(length) <= (folder / name).stat().st_size


def test_trap_2_parameters_are_named_as_orbax_names_them(pair):
    cases = ("containers", "odd_names", "bare_jax", "core", "sharded")
    pair.assert_orbax_loads(*cases)
    for case in cases:
        ours, theirs = (
            {key for key in pair.keys(who, case) if key.endswith("zarr.json")}
            for who in ("holdfast", "orbax")
        )
        assert ours == theirs


def test_trap_2_names_that_collide_in_orbax_do_not_here_and_are_told(tmp_path):
    tree = {"a.b": np.ones(300), "a": {"b": np.zeros(300)}, "s.t": "x", "s": {"t": "y"}}
    hf.save(tmp_path / "collide", tree)
    assert differences(hf.load(tmp_path / "collide"), tree) == []
    (reason,) = hf.metadata(tmp_path / "collide").orbax_readable.values()
    assert "same parameter name" in reason


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_trap_3_the_item_says_which_format_it_is_in(pair, tmp_path, compression, read_with_orbax):
    saving = hf.options.ArraySaveOptions(compression=compression)
    context = hf.Context(array=hf.options.ArrayOptions(saving=saving))
    hf.save(tmp_path / "named", CASES["core"]().tree, context=context)
    with hf.Checkpointer(hf.StandardCheckpointHandler(), context=context) as checkpointer:
        checkpointer.save(tmp_path / "flat", CASES["core"]().tree)
    for folder in (tmp_path / "named" / "state", tmp_path / "flat"):
        said = json.loads((folder / "_METADATA").read_text())
        assert (said["use_ocdbt"], said["use_zarr3"]) == (True, True)
        assert said.keys() == pair.document("orbax", "core", "_METADATA").keys()
    jobs = [
        {"id": f"{name} {how}", "how": how, "case": "core", "path": str(tmp_path / name)}
        for name, how in itertools.product(("named", "flat"), ("v1", "v1_target"))
    ]
    assert set(map(str, read_with_orbax(jobs).values())) == {"[]"}


def test_trap_4_every_leaf_and_empty_container_is_described_as_orbax_does(pair):
    cases = ("core", "containers", "scalars", "strings", "prng_keys", "odd_names", "bare_jax")
    pair.assert_orbax_loads(*cases)
    for case in cases:
        ours, theirs = (
            {
                name: (entry["key_metadata"], _without_write_shape(entry["value_metadata"]))
                for name, entry in document["tree_metadata"].items()
            }
            for document in pair.both(case, "_METADATA")
        )
        assert ours == theirs


def _without_write_shape(value):
    """How the replicas of an array share the work is the writer's choice."""
    return {key: found for key, found in value.items() if key != "write_shape"}


def test_trap_5_shardings_are_json_in_json_under_padded_base64(pair):
    cases = ("sharded", "odd_names", "prng_keys", "core")
    pair.assert_orbax_loads(*cases)
    for case in cases:
        ours, theirs = (
            {name: json.loads(value) for name, value in document.items()}
            for document in pair.both(case, "_sharding")
        )
        assert ours == theirs
    names = pair.document("holdfast", "odd_names", "_sharding")
    assert all(any(sign in name for name in names) for sign in "=-_")


def test_trap_6_prng_keys_say_which_implementation_they_are_of(pair):
    pair.assert_orbax_loads("prng_keys")
    for case in ("prng_keys", "core", "sharded"):
        ours, theirs = (
            {
                entry["array_metadata"]["param_name"]: entry["array_metadata"]
                for entry in document["array_metadatas"]
            }
            for document in pair.both(case, "array_metadatas/process_0")
        )
        assert ours.keys() == theirs.keys()
        for name, entry in ours.items():
            assert entry.keys() == theirs[name].keys()
            assert entry["ext_metadata"] == theirs[name]["ext_metadata"]


def test_trap_7_chunks_of_zeros_are_stored(pair):
    pair.assert_orbax_loads("zeros")
    keys = pair.keys("holdfast", "zeros")
    names = {key.removesuffix("/zarr.json") for key in keys if key.endswith("/zarr.json")}
    assert names == set(CASES["zeros"]().tree)
    for name in names:
        spec = {"driver": "zarr3", "kvstore": _in(pair.ours("zeros"), name)}
        array = ts.open(spec).result()
        chunk = array.chunk_layout.write_chunk.shape or ()
        grid = [math.ceil(size / part) for size, part in zip(array.shape, chunk, strict=True)]
        assert sum(key.startswith(f"{name}/c") for key in keys) == math.prod(grid)


def _in(item, name):
    return {"driver": "ocdbt", "base": f"file://{item}/", "path": f"{name}/"}


def test_trap_8_scalars_have_no_axes_and_strings_are_where_json_pointers_look(pair):
    pair.assert_orbax_loads("scalars", "strings")
    ours, theirs = pair.both("strings", "_strings.json")
    assert ours == theirs
    assert {"with": {"slash": "nested in the file"}}.items() <= ours.items()
    for name, value in CASES["scalars"]().tree.items():
        spec = {"driver": "zarr3", "kvstore": _in(pair.ours("scalars"), name)}
        array = ts.open(spec).result()
        assert array.shape == ()
        assert array.dtype.numpy_dtype == np.asarray(value).dtype


def test_trap_8_text_that_json_pointers_cannot_hold_is_told(tmp_path):
    for number, tree in enumerate([{"a~": "x"}, {"s": "p", "s/t": "v"}]):
        hf.save(tmp_path / str(number), tree)
        assert hf.load(tmp_path / str(number)) == tree
        (reason,) = hf.metadata(tmp_path / str(number)).orbax_readable.values()
        assert reason


def test_trap_9_the_step_document_is_one_that_every_reader_takes(tmp_path, pair):
    core = CASES["core"]().tree
    custom = {"run": {"id": 4}, "tags": ["a", None]}
    hf.save(tmp_path / "one", core, custom_metadata=custom)
    said = json.loads((tmp_path / "one" / "_CHECKPOINT_METADATA").read_text())
    theirs = json.loads(
        (pair.ours("core").parents[2] / "orbax/core/_CHECKPOINT_METADATA").read_text()
    )
    assert said.keys() == theirs.keys()
    assert ocp.metadata(tmp_path / "one").custom_metadata == custom
    assert ocp.load_checkpointables(tmp_path / "one").keys() == {"state"}
    with hf.training.Checkpointer(tmp_path / "run") as run:
        run.save(7, core, metrics={"loss": 1.5}, custom_metadata=custom)
    with ocp0.CheckpointManager(tmp_path / "run") as manager:
        restored = manager.restore(7)
        assert differences(restored.state, core) == []
        assert restored.metrics == {"loss": 1.5}
    args = ocp0.args.Composite(state=ocp0.args.StandardRestore(core))
    with ocp0.CheckpointManager(tmp_path / "run") as manager:
        assert differences(manager.restore(7, args=args).state, core) == []
    with ocp.training.Checkpointer(tmp_path / "run") as training:
        assert differences(training.load(7), core) == []
        assert training.metadata(7).custom_metadata == custom


def test_trap_10_orbax_lists_only_whole_steps_however_the_writer_died(zygote, tmp_path):
    original = tmp_path / "original" / "run"
    with hf.training.Checkpointer(original) as run:
        for step in (0, 1):
            run.save(step, state(step))
    seen = set()
    for kill_at in itertools.count(2, 9):
        folder = tmp_path / str(kill_at)
        shutil.copytree(original.parent, folder)
        worker = zygote.start("one-step", folder / "run", tmp_path / "log", kill_at)
        worker.join()
        with ocp0.CheckpointManager(folder / "run") as manager:
            steps = tuple(manager.all_steps())
        with ocp.training.Checkpointer(folder / "run") as training:
            assert tuple(entry.step for entry in training.checkpoints) == steps
            for step in steps:
                found = training.load(step)
                assert jax.tree.all(jax.tree.map(np.array_equal, found, state(step)))
        seen.add(steps)
        if "ended" in worker.said():
            break
    assert {(0, 1), (1, 2)} <= seen <= {(0, 1), (0, 1, 2), (1, 2)}
