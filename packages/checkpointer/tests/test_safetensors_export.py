"""Exporting checkpoints and trees as safetensors files, read back by the real library."""

import json
import subprocess
import sys
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.flax
import safetensors.numpy
from packages.checkpointer.tests.tensors import counted, get, names, put, write

import holdfast as hf
from holdfast_checkpointer.safetensors.collect import Naming, collect_tree
from holdfast_checkpointer.safetensors.write import plan_shards
from holdfast_storage import IfAbsent

PARAMS = {
    "dense": [
        {"kernel": jnp.arange(6.0).reshape(2, 3), "bias": None},
        {"kernel": jnp.ones((3, 1))},
    ],
    "embed": np.arange(8, dtype=ml_dtypes.bfloat16).reshape(4, 2),
    "ids": np.arange(5, dtype=np.uint16),
    "scale": np.float32(2),
    "none": np.zeros((0, 3), np.float16),
}
NAMES = ["dense.0.kernel", "dense.1.kernel", "embed", "ids", "none", "scale"]
INDEX = "model.safetensors.index.json"


def theirs(path):
    """What the real library reads in a file."""
    return {
        name: (spec["dtype"], list(spec["shape"]), bytes(spec["data"]))
        for name, spec in safetensors.deserialize(get(path))
    }


def expected(tree=PARAMS):
    words = {"float32": "F32", "bfloat16": "BF16", "uint16": "U16", "float16": "F16"}
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {}
    for path, leaf in leaves:
        name = ".".join(str(getattr(k, "key", getattr(k, "idx", None))) for k in path)
        found[name] = (words[leaf.dtype.name], list(leaf.shape), np.asarray(leaf).tobytes())
    return found


class TestBothSources:
    @pytest.fixture(params=["in memory", "stored"])
    def source(self, request, place):
        if request.param == "in memory":
            return PARAMS
        hf.save(f"{place}/ckpt", PARAMS)
        return f"{place}/ckpt"

    def test_one_shard_is_one_file_that_the_library_reads(self, source, place):
        hf.export_safetensors(source, f"{place}/out", metadata={"format": "pt"})
        assert names(f"{place}/out") == ["model.safetensors"]
        assert theirs(f"{place}/out/model.safetensors") == expected()
        assert hf.metadata(f"{place}/out").custom_metadata == {"format": "pt"}
        hf.export_safetensors(source, f"{place}/x.safetensors")
        assert theirs(f"{place}/x.safetensors") == expected()

    def test_several_shards_have_an_index(self, source, place):
        hf.export_safetensors(source, f"{place}/out", max_shard_bytes=24)
        files = names(f"{place}/out")
        index = json.loads(get(f"{place}/out/{INDEX}"))
        assert set(files) == {INDEX, *index["weight_map"].values()}
        assert files[0] == f"model-00001-of-0000{len(files) - 1}.safetensors"
        assert index["metadata"]["total_size"] == sum(len(d) for _, _, d in expected().values())
        assert sorted(index["weight_map"]) == NAMES
        found = {}
        for file in files[:-1]:
            tensors = theirs(f"{place}/out/{file}")
            assert {index["weight_map"][name] for name in tensors} == {file}
            assert sum(len(data) for _, _, data in tensors.values()) <= 24
            found |= tensors
        assert found == expected()

    def test_what_is_exported_loads_into_the_same_tree(self, source, place):
        hf.export_safetensors(source, f"{place}/out", max_shard_bytes=24)
        found = hf.load(f"{place}/out", PARAMS)
        assert jax.tree.structure(found) == jax.tree.structure(PARAMS)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(PARAMS), strict=True):
            assert type(a) is type(b)
            assert np.array_equal(a, b)

    def test_every_tensor_is_aligned_to_its_width(self, source, place):
        hf.export_safetensors(source, f"{place}/x.safetensors")
        data = get(f"{place}/x.safetensors")
        length = int.from_bytes(data[:8], "little")
        assert (8 + length) % 8 == 0
        for entry in json.loads(data[8 : 8 + length]).values():
            width = {"F32": 4, "BF16": 2, "U16": 2, "F16": 2}[entry["dtype"]]
            assert entry["data_offsets"][0] % width == 0


def test_the_library_s_own_files_and_flax_functions_agree(tmp_path):
    hf.export_safetensors(PARAMS, tmp_path / "x.safetensors")
    flax = safetensors.flax.load_file(tmp_path / "x.safetensors")
    assert sorted(flax) == NAMES
    assert flax["embed"].dtype == jnp.bfloat16
    assert np.array_equal(flax["dense.0.kernel"], PARAMS["dense"][0]["kernel"])


def test_packed_elements_come_back(place):
    tree = {
        "four": np.array([[1, 2], [3, 4]], np.uint8).view(np.uint8),
        "f4": np.array([0, 0.5, 1, -6], ml_dtypes.float4_e2m1fn),
        "f6": np.array([0, 0.5, 1, -2], ml_dtypes.float6_e3m2fn),
        "f8": np.array([1, 2], ml_dtypes.float8_e4m3fn),
    }
    hf.export_safetensors(tree, f"{place}/x.safetensors")
    found = hf.load(f"{place}/x.safetensors")
    for name, array in tree.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
    assert theirs(f"{place}/x.safetensors")["f4"][1] == [4]


def test_big_endian_and_strided_arrays_are_written_as_they_read(place):
    array = np.arange(12, dtype=">i4").reshape(3, 4)[:, ::2]
    hf.export_safetensors({"a": array}, f"{place}/x.safetensors")
    assert np.array_equal(safetensors.numpy.load(get(f"{place}/x.safetensors"))["a"], array)


def test_a_part_of_a_checkpoint_is_exported_under_new_names(place):
    hf.save(f"{place}/c", {"params": PARAMS, "step": 3, "key": jax.random.key(0)})
    hf.export_safetensors(
        f"{place}/c", f"{place}/out", select="params/**", rename={"params/(.*)": r"model/\1"}
    )
    assert sorted(theirs(f"{place}/out/model.safetensors")) == [f"model.{name}" for name in NAMES]


def test_safetensors_files_are_dealt_out_anew(place):
    write(f"{place}/in/model.safetensors", {"a": np.arange(4.0), "b.c": np.arange(3)})
    hf.export_safetensors(f"{place}/in", f"{place}/out", max_shard_bytes=32)
    assert len(names(f"{place}/out")) == 3
    assert np.array_equal(hf.load(f"{place}/out")["b.c"], np.arange(3))


@pytest.mark.parametrize("stored", [True, False])
def test_what_can_be_no_tensor_is_refused_with_its_path(stored, place):
    tree = {
        "step": 3,
        "name": "x",
        "data": b"y",
        "key": jax.random.key(0),
        "wide": np.zeros(2, np.complex128),
        "int4": np.zeros(2, ml_dtypes.int4),
        "odd": np.zeros(3, ml_dtypes.float4_e2m1fn),
        "a": {"b": np.zeros(1)},
        "a.b": np.zeros(1),
        "__metadata__": np.zeros(1),
    }
    if stored:
        hf.save(f"{place}/c", tree)
    with pytest.raises(hf.errors.UnsupportedLeafError) as error:
        hf.export_safetensors(f"{place}/c" if stored else tree, f"{place}/out")
    assert len(error.value.problems) == len(tree) - 1
    for words in (
        "['step']: int is no tensor",
        "['key']: PRNG keys can be no tensor",
        "['wide']: the format has no dtype complex128",
        "['int4']: the format has no dtype int4",
        "['odd']: float4_e2m1fn[3] does not fill its last byte",
        "would be called 'a.b', as that of ['a']['b']",
        "would be called '__metadata__'",
    ):
        assert words in str(error.value)
    assert names(f"{place}/out") == []


def test_numbers_and_texts_go_into_the_metadata_if_asked(place):
    tree = {"w": np.zeros(2), "step": 3, "opt": {"lr": 0.1, "on": True}, "name": "x"}
    hf.save(f"{place}/c", tree)
    texts = {"step": "3", "opt.lr": "0.1", "opt.on": "true", "name": "x", "by": "me"}
    for n, source in enumerate((tree, f"{place}/c")):
        out = f"{place}/{n}.safetensors"
        hf.export_safetensors(source, out, non_tensors="metadata", metadata={"by": "me"})
        assert hf.metadata(out).custom_metadata == texts
    with pytest.raises(ValueError, match="the metadata has a 'step' already"):
        hf.export_safetensors(tree, f"{place}/d", non_tensors="metadata", metadata={"step": ""})


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"max_shard_bytes": 0}, "max_shard_bytes.*0"),
        ({"max_shard_bytes": "5GB"}, "number of bytes.*'5GB'"),
        ({"metadata": {"a": "\ud800"}}, "lone surrogates"),
        ({"metadata": {"a": 1}}, "metadata holds texts; 'a': 1"),
        ({"metadata": ["a"]}, "dict of texts"),
        ({"non_tensors": "drop"}, "non_tensors.*'drop'"),
        ({"select": "a"}, "stored checkpoint"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(arguments, match, place):
    with pytest.raises(ValueError, match=match):
        hf.export_safetensors({"a": np.zeros(2)}, f"{place}/out", **arguments)
    assert names(place) == []


def test_names_and_texts_that_are_not_unicode_are_refused(place):
    for tree in ({"\ud800": np.zeros(1)}, {"a": "\ud800", "w": np.zeros(1)}):
        with pytest.raises(ValueError, match="lone surrogates"):
            hf.export_safetensors(tree, f"{place}/x", non_tensors="metadata")
    assert names(place) == []


def test_one_file_must_be_enough_for_a_path_that_names_one(place):
    tree = {"a": np.zeros(4), "b": np.zeros(4)}
    with pytest.raises(ValueError, match="take 2 files"):
        hf.export_safetensors(tree, f"{place}/x.safetensors", max_shard_bytes=40)
    with pytest.raises(ValueError, match="names an index"):
        hf.export_safetensors(tree, f"{place}/{INDEX}")
    with pytest.raises(ValueError, match="no name|called ''"):
        hf.export_safetensors(np.zeros(3), f"{place}/x.safetensors")
    assert names(place) == []


def test_a_header_is_kept_under_the_limit_by_more_shards():
    tree = {f"layer{n:03d}.weight": np.zeros(1, np.int8) for n in range(100)}
    tensors = collect_tree(tree, Naming(".", False, {})).tensors
    shards = plan_shards(tensors, {"a": "b"}, max_bytes=1000, header_limit=2000)
    assert len(shards) > 5
    assert sum(map(len, shards)) == 100
    for shard in shards:
        header = safetensors.numpy.save({t.name: t.value for t in shard}, {"a": "b"})
        assert int.from_bytes(header[:8], "little") <= 2000
    with pytest.raises(ValueError, match="more than the 2000 bytes"):
        plan_shards(tensors, {"a": "b" * 2000}, max_bytes=1000, header_limit=2000)


class TestTheDestination:
    TREE = {"a": np.arange(4.0), "b": np.arange(4.0) + 4}
    NEW = {"a": np.arange(4.0) * 2, "c": np.arange(4.0) + 5}

    def test_files_that_are_there_are_not_touched(self, place):
        hf.export_safetensors(self.TREE, f"{place}/out", max_shard_bytes=32)
        hf.export_safetensors(self.TREE, f"{place}/x.safetensors")
        before = names(place), get(f"{place}/x.safetensors")
        for path in (f"{place}/out", f"{place}/x.safetensors"):
            with pytest.raises(FileExistsError, match="overwrite=True"):
                hf.export_safetensors(self.NEW, path)
        assert (names(place), get(f"{place}/x.safetensors")) == before

    @pytest.mark.parametrize("old", [32, 1000])
    @pytest.mark.parametrize("new", [32, 1000])
    def test_an_overwrite_leaves_the_new_set_and_what_was_never_of_the_old(self, old, new, place):
        put(f"{place}/out/config.json", b"{}")
        hf.export_safetensors(self.TREE, f"{place}/out", max_shard_bytes=old)
        write(f"{place}/out/adapter.safetensors", {"z": np.zeros(1)})
        hf.export_safetensors(self.NEW, f"{place}/out", max_shard_bytes=new, overwrite=True)
        found = hf.load(f"{place}/out")
        assert {name: found[name].tolist() for name in ("a", "c")} == {
            name: self.NEW[name].tolist() for name in ("a", "c")
        }
        assert "b" not in found
        left = set(names(f"{place}/out"))
        assert {"config.json", "adapter.safetensors"} <= left
        if INDEX in left:
            used = set(json.loads(get(f"{place}/out/{INDEX}"))["weight_map"].values())
            assert left == {"config.json", "adapter.safetensors", INDEX, *used}

    def test_what_a_killed_export_left_is_in_the_way_and_goes_with_an_overwrite(self, place):
        write(f"{place}/out/model-00001-of-00003.safetensors", {"a": np.zeros(4)})
        with pytest.raises(FileExistsError, match="00001-of-00003"):
            hf.export_safetensors(self.NEW, f"{place}/out")
        hf.export_safetensors(self.NEW, f"{place}/out", overwrite=True)
        assert sorted(hf.load(f"{place}/out")) == ["a", "c"]
        assert len(names(f"{place}/out")) == 2

    def test_an_overwrite_of_one_file_replaces_it(self, place):
        hf.export_safetensors(self.TREE, f"{place}/x.safetensors")
        hf.export_safetensors(self.NEW, f"{place}/x.safetensors", overwrite=True)
        assert sorted(hf.load(f"{place}/x.safetensors")) == ["a", "c"]

    def test_a_checkpoint_is_never_written_into(self, place):
        hf.save(f"{place}/c", {"a": 1})
        before = names(place)
        for path in ("c", "c/out", "c/x.safetensors"):
            with pytest.raises(FileExistsError, match="checkpoint"):
                hf.export_safetensors(self.TREE, f"{place}/{path}", overwrite=True)
        with pytest.raises(ValueError, match="one lies in the other"):
            hf.export_safetensors(f"{place}/c", f"{place}/c/state/x.safetensors")
        assert names(place) == before


def test_readers_see_nothing_or_the_old_until_the_index_is_there(monkeypatch):
    """After each put of an export, a reader looks."""
    backend, url = counted()
    tree = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    plain, seen = backend.put, []

    async def put_and_look(key, data, **how):
        version = await plain(key, data, **how)
        seen.append(key.rpartition("/")[2])
        return version

    monkeypatch.setattr(backend, "put", put_and_look)
    hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32)
    assert seen[-1] == INDEX
    shards = seen[:-1]
    for count in range(1, 3):
        for name in shards[:count]:
            put(f"{url}/part{count}/{name}", get(f"{url}/out/{name}"))
        with pytest.raises(hf.errors.DamagedCheckpointError, match="not complete"):
            hf.load(f"{url}/part{count}")
    seen.clear()
    new = {name: array + 1 for name, array in tree.items()}
    hf.export_safetensors(new, f"{url}/out", max_shard_bytes=32, overwrite=True)
    assert seen[-1] == INDEX
    assert not set(seen[:-1]) & set(shards)


@pytest.mark.parametrize("overwrite", [True, False])
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_export_that_fails_leaves_what_was_there(at, overwrite, monkeypatch):
    backend, url = counted()
    tree = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    if overwrite:
        hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32)
    before = names(f"{url}/out")
    plain, calls = backend.put, []

    async def failing(key, data, **how):
        calls.append(key)
        if len(calls) == at:
            raise hf.errors.StorageFullError("injected", key=key, root="")
        return await plain(key, data, **how)

    monkeypatch.setattr(backend, "put", failing)
    new = {name: array + 1 for name, array in tree.items()}
    with pytest.raises(hf.errors.StorageFullError):
        hf.export_safetensors(new, f"{url}/out", max_shard_bytes=32, overwrite=overwrite)
    assert names(f"{url}/out") == before
    if overwrite:
        assert hf.load(f"{url}/out")["t1"].tolist() == [1] * 4


@pytest.mark.parametrize(
    "told",
    [hf.errors.TransientStorageError, hf.errors.StorageTimeoutError, hf.errors.ObjectExistsError],
)
def test_an_index_whose_reply_was_lost_is_a_success(told, monkeypatch):
    """A client that repeats the put on its own is told that the object exists."""
    backend, url = counted()
    plain = backend.put

    async def lossy(key, data, **how):
        version = await plain(key, data, **how)
        if key.endswith(INDEX):
            raise told("injected: lost reply", key=key, root="")
        return version

    monkeypatch.setattr(backend, "put", lossy)
    tree = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32)
    assert sorted(hf.load(f"{url}/out")) == sorted(tree)


def test_a_race_for_a_folder_has_one_winner(monkeypatch):
    backend, url = counted()
    tree = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    plain = backend.put

    async def second(key, data, **how):
        if key.endswith(INDEX):  # another exporter was faster
            await plain(key, b'{"weight_map": {}}', condition=IfAbsent())
        return await plain(key, data, **how)

    monkeypatch.setattr(backend, "put", second)
    with pytest.raises(FileExistsError):
        hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32)
    assert names(f"{url}/out") == [INDEX]


def test_of_two_overwrites_at_once_the_later_one_loses_and_the_other_stays_whole(monkeypatch):
    backend, url = counted()
    tree = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32)
    hf.export_safetensors({n: a + 5 for n, a in tree.items()}, f"{url}/other", max_shard_bytes=32)
    others = {name.replace("model-", "model-other-"): name for name in names(f"{url}/other")}
    plain = backend.put

    async def overtaken(key, data, **how):
        if key.endswith(INDEX):  # the other export, begun meanwhile, publishes first
            folder = key.rpartition("/")[0]
            for new, old in others.items():
                found = await backend.get(f"{folder.removesuffix('out')}other/{old}")
                await plain(f"{folder}/{new}", found.replace(b'"model-', b'"model-other-'))
        return await plain(key, data, **how)

    monkeypatch.setattr(backend, "put", overtaken)
    with pytest.raises(FileExistsError, match="another export was faster"):
        hf.export_safetensors(tree, f"{url}/out", max_shard_bytes=32, overwrite=True)
    assert hf.load(f"{url}/out")["t1"].tolist() == [6] * 4


def test_damage_in_the_source_stops_the_export(tmp_path):
    rng = np.random.default_rng(0)
    hf.save(tmp_path / "c", {"w": rng.random(100_000)})
    data = max((tmp_path / "c").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    changed = bytearray(data.read_bytes())
    changed[len(changed) // 2] ^= 1
    data.write_bytes(changed)
    with pytest.raises(hf.errors.DamagedCheckpointError, match="w"):
        hf.export_safetensors(tmp_path / "c", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_export_holds_one_shard_and_not_the_checkpoint(tmp_path):
    shard = 8 << 20
    tree = {f"t{n}": np.full(shard // 8, float(n)) for n in range(8)}
    hf.save(tmp_path / "c", tree)
    del tree
    tracemalloc.start()
    try:
        hf.export_safetensors(tmp_path / "c", tmp_path / "out", max_shard_bytes=shard)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 4 * shard
    assert hf.load(tmp_path / "out")["t7"][0] == 7


def test_a_stored_checkpoint_is_exported_without_a_device(tmp_path):
    hf.save(tmp_path / "c", {"w": jnp.ones(3)})
    code = (
        "import jax, sys, holdfast as hf\n"
        "jax.config.update('jax_platforms', 'none_such')\n"
        "hf.export_safetensors(sys.argv[1], sys.argv[2])\n"
    )
    out = tmp_path / "x.safetensors"
    subprocess.run([sys.executable, "-c", code, tmp_path / "c", out], check=True)
    assert theirs(str(out))["w"] == ("F32", [3], np.ones(3, np.float32).tobytes())
