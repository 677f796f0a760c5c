"""Loading files of the real safetensors library, on every store, and only the bytes wanted."""

import itertools
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from packages.checkpointer.tests.tensors import counted, entry, put, raw, write

import holdfast as hf
from holdfast_checkpointer.arrays.options import ArrayLoadOptions
from holdfast_checkpointer.arrays.read import ArrayRequest
from holdfast_checkpointer.safetensors.files import find_files, open_files
from holdfast_checkpointer.safetensors.ranges import Economy, coalesced, pieces_of
from holdfast_checkpointer.safetensors.read import TensorReader
from holdfast_storage.loop import get_loop

MODEL = {
    "embed": np.arange(12, dtype=np.float32).reshape(4, 3),
    "layers.0.weight": np.arange(6, dtype=np.int64).reshape(2, 3),
    "layers.1.weight": np.arange(6, dtype=np.int64).reshape(2, 3) + 6,
    "scale": np.array(2.5, np.float16),
}
NESTED = {
    "embed": MODEL["embed"],
    "layers": {
        "0": {"weight": MODEL["layers.0.weight"]},
        "1": {"weight": MODEL["layers.1.weight"]},
    },
    "scale": MODEL["scale"],
}
TENSORS = hf.Context(checkpoint_layout="safetensors")


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def sharded(folder, index="model.safetensors.index.json"):
    """The model in two files with an index, as Hugging Face has it."""
    first = {name: MODEL[name] for name in ("embed", "layers.0.weight")}
    second = {name: MODEL[name] for name in ("layers.1.weight", "scale")}
    files = {"model-00001-of-00002.safetensors": first, "model-00002-of-00002.safetensors": second}
    for name, tensors in files.items():
        write(f"{folder}/{name}", tensors)
    weight_map = {name: file for file, tensors in files.items() for name in tensors}
    put(f"{folder}/{index}", json.dumps({"metadata": {}, "weight_map": weight_map}).encode())


@pytest.fixture(params=["file", "folder", "files", "folder by index", "index"])
def model(request, place):
    """A path that leads to the model, of each kind."""
    if request.param == "file":
        write(f"{place}/model.safetensors", MODEL)
        return f"{place}/model.safetensors"
    if request.param == "folder":
        write(f"{place}/weights.safetensors", MODEL)
        put(f"{place}/config.json", b"{}")
        return place
    if request.param == "files":
        write(f"{place}/a.safetensors", {"embed": MODEL["embed"], "scale": MODEL["scale"]})
        write(f"{place}/b.safetensors", {k: v for k, v in MODEL.items() if "layers" in k})
        return place
    sharded(place)
    # Another copy of the weights, as some models have one: the index does not name it.
    write(f"{place}/consolidated.safetensors", MODEL)
    return place if "folder" in request.param else f"{place}/model.safetensors.index.json"


class TestEveryKindOfPath:
    def test_it_loads_as_numpy_arrays_by_name(self, model):
        same(hf.load(model), MODEL)
        same(hf.load(model, context=TENSORS), MODEL)
        same(hf.load_async(model).result(), MODEL)

    def test_it_is_a_checkpoint_unless_only_orbax_s_are_asked_for(self, model):
        only = hf.Context(checkpoint_layout=hf.options.CheckpointLayout.ORBAX)
        assert hf.is_checkpoint(model)
        assert hf.is_checkpoint(model, context=TENSORS)
        assert not hf.is_checkpoint(model, context=only)
        with pytest.raises(FileNotFoundError):
            hf.load(model, context=only)

    def test_metadata_is_a_target_of_what_is_there(self, model):
        found = hf.metadata(model)
        assert {n: (m.shape, m.dtype) for n, m in found.metadata.items()} == {
            n: (a.shape, a.dtype) for n, a in MODEL.items()
        }
        with pytest.raises(hf.errors.InvalidLayoutError, match="without a name"):
            hf.checkpointables_metadata(model)
        same(hf.load(model, found), MODEL)

    def test_names_nest_at_the_separator_if_asked(self, model):
        nested = hf.Context(safetensors=hf.options.SafetensorsOptions(nested=True))
        same(hf.load(model, context=nested), NESTED)
        assert hf.metadata(model, context=nested).metadata["layers"]["1"]["weight"].shape == (2, 3)

    def test_the_target_chooses_names_nesting_and_types(self, model):
        layer = {"weight": jax.ShapeDtypeStruct((2, 3), jnp.int32)}
        target = {"layers": [layer, {"weight": np.ndarray}], "scale": ..., "bias": None}
        found = hf.load(model, target)
        assert found["scale"] is ...
        assert found["bias"] is None
        assert isinstance(found["layers"][0]["weight"], jax.Array)
        assert isinstance(found["layers"][1]["weight"], np.ndarray)
        flat = hf.load(model, {"layers.1.weight": None})
        same(flat, {"layers.1.weight": MODEL["layers.1.weight"]})

    def test_a_tensor_that_is_missing_is_a_key_error_that_names_the_nearest(self, model):
        with pytest.raises(KeyError, match=r"'layers\.2\.weight'; near it: 'layers\.[01]\.weight'"):
            hf.load(model, {"layers": [None, None, {"weight": np.ndarray}]})
        with pytest.raises(hf.errors.TensorNotFoundError, match="embedd"):
            hf.load(model, {"embedd": ...})

    def test_a_shape_or_dtype_that_does_not_fit_names_the_tensor(self, model):
        target = {"embed": np.zeros((3, 4), np.float32), "scale": np.zeros((), np.int8)}
        with pytest.raises(ValueError, match=r"\['embed'\].*\[3, 4\].*\[4, 3\]") as error:
            hf.load(model, target)
        assert "['scale']: the target has dtype int8" in str(error.value)
        assert hf.load(model, {"scale": np.zeros((), np.int8)}, cast="unsafe")["scale"] == 2

    def test_names_can_be_chosen_and_renamed(self, model):
        found = hf.load(model, select=["layers.*"], rename={r"layers\.(\d)\.(.*)": r"l\1/\2"})
        weights = [{"weight": MODEL[f"layers.{n}.weight"]} for n in (0, 1)]
        same(found, {"l0": weights[0], "l1": weights[1]})
        target = {"model": {"scale": jax.ShapeDtypeStruct((), jnp.float32)}}
        found = hf.load(model, target, select="scale", rename={"scale": "model/scale"})
        assert found["model"]["scale"].dtype == jnp.float32

    def test_it_has_no_items(self, model):
        with pytest.raises(KeyError, match="without items"):
            hf.load(model, checkpointable_name="state")
        with pytest.raises(ValueError, match="without items: load reads it"):
            hf.load_checkpointables(model)


INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64"]
SMALL = ["float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float8_e5m2fnuz", "float8_e4m3fnuz"]


@pytest.mark.parametrize("name", ["bool", *INTEGERS, *FLOATS, *SMALL])
def test_every_dtype_of_the_library_loads_as_itself(name, place):
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    count = 2 if name == "bool" else 12
    array = np.arange(count * dtype.itemsize, dtype=np.uint8).view(dtype)
    write(f"{place}/x.safetensors", {"a": array, "none": array[:0].reshape(0, 3), "one": array[:1]})
    found = hf.load(f"{place}/x.safetensors")
    same(found, {"a": array, "none": array[:0].reshape(0, 3), "one": array[:1]})
    target = {"a": jax.ShapeDtypeStruct((count,), dtype)}
    if dtype.itemsize < 8 or dtype.kind == "c":
        same(hf.load(f"{place}/x.safetensors", target), {"a": jnp.asarray(array)})


def test_elements_of_four_bits_are_two_in_a_byte_the_low_bits_first(place):
    data = np.array([0x10, 0x32, 0x54, 0x76], np.uint8)
    spec = {"dtype": "float4_e2m1fn_x2", "shape": (2, 2)}
    spec = safetensors.TensorSpec(data_ptr=data.ctypes.data, data_len=4, **spec)
    put(f"{place}/x.safetensors", bytes(safetensors.serialize({"f": spec})))
    found = hf.load(f"{place}/x.safetensors")["f"]
    assert found.dtype == ml_dtypes.float4_e2m1fn
    assert found.astype(np.float32).tolist() == [[0, 0.5, 1, 1.5], [2, 3, 4, 6]]
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    columns = NamedSharding(mesh, PartitionSpec(None, "x"))
    target = {"f": jax.ShapeDtypeStruct((2, 4), ml_dtypes.float4_e2m1fn, sharding=columns)}
    again = hf.load(f"{place}/x.safetensors", target)["f"]
    assert np.asarray(again).view(np.uint8).tolist() == found.view(np.uint8).tolist()


@pytest.mark.parametrize("dtype", ["F6_E2M3", "F6_E3M2"])
def test_elements_of_six_bits_fill_bytes_from_the_low_bits(dtype, place):
    values = np.array([1, 2, 62, 63], np.uint8)
    bits = "".join(f"{v:06b}"[::-1] for v in values)
    data = bytes(int(bits[n : n + 8][::-1], 2) for n in range(0, 24, 8))
    put(f"{place}/x.safetensors", raw({"f": entry(dtype, (4,), (0, 3))}, data))
    assert hf.load(f"{place}/x.safetensors")["f"].view(np.uint8).tolist() == values.tolist()


def test_metadata_of_the_header_and_the_time_are_told(place):
    write(f"{place}/a.safetensors", {"a": np.zeros(1)}, {"format": "np", "who": "a"})
    write(f"{place}/b.safetensors", {"b": np.zeros(1)}, {"format": "np", "who": "b"})
    found = hf.metadata(place)
    assert found.custom_metadata == {
        "format": "np",
        "who": {"a.safetensors": "a", "b.safetensors": "b"},
    }
    assert found.commit_timestamp.year >= 2024  # nanoseconds, not seconds in their place


def test_hidden_files_belong_to_nobody(place):
    write(f"{place}/a.safetensors", {"a": np.zeros(1)})
    put(f"{place}/._a.safetensors", b"what a file manager leaves")
    assert list(hf.load(place)) == ["a"]


def test_of_several_indexes_the_usual_name_decides(place):
    write(f"{place}/fp16.safetensors", {"a": np.array(1, np.float16)})
    only = {"weight_map": {"a": "fp16.safetensors"}}
    for name in ("model.fp16", "other"):
        put(f"{place}/{name}.safetensors.index.json", json.dumps(only).encode())
    with pytest.raises(hf.errors.InvalidLayoutError, match="give the path of the one to use"):
        hf.load(place)
    assert not hf.is_checkpoint(place)
    assert hf.load(f"{place}/model.fp16.safetensors.index.json")["a"] == 1
    sharded(place)
    same(hf.load(place), MODEL)


def test_a_checkpoint_wins_over_files_beside_it_unless_they_are_asked_for(tmp_path):
    hf.save(tmp_path / "c", {"from": "the checkpoint"})
    write(f"{tmp_path}/c/x.safetensors", {"a": np.zeros(1)})
    assert hf.load(tmp_path / "c") == {"from": "the checkpoint"}
    assert list(hf.load(tmp_path / "c", context=TENSORS)) == ["a"]


def test_where_nothing_is_the_error_says_so(place):
    with pytest.raises(FileNotFoundError, match="no checkpoint is here"):
        hf.load(f"{place}/nothing")
    with pytest.raises(FileNotFoundError):
        hf.load(f"{place}/nothing.safetensors")
    for missing in ("nothing", "nothing.safetensors"):
        with pytest.raises(hf.errors.InvalidLayoutError, match="no safetensors files") as error:
            hf.load(f"{place}/{missing}", context=TENSORS)
        assert isinstance(error.value, ValueError | FileNotFoundError)
        assert not hf.is_checkpoint(f"{place}/{missing}", context=TENSORS)


def test_calls_without_a_meaning_for_files_refuse_the_layout(place):
    tree = {"a": np.zeros(1)}
    for call in (
        lambda: hf.save(f"{place}/c", tree, context=TENSORS),
        lambda: hf.save_checkpointables(f"{place}/c", {"x": tree}, context=TENSORS),
        lambda: hf.load_checkpointables(f"{place}/c", context=TENSORS),
    ):
        with pytest.raises(NotImplementedError, match="export_safetensors"):
            call()
    assert not hf.is_checkpoint(f"{place}/c")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"separator": ""}, "separator"),
        ({"max_over_read_ratio": 0.5}, "max_over_read_ratio.*0.5"),
        ({"max_over_read_ratio": math.nan}, "max_over_read_ratio"),
        ({"read_chunk_bytes": 0}, "read_chunk_bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        hf.options.SafetensorsOptions(**options)


def test_an_unknown_layout_is_refused():
    with pytest.raises(ValueError, match="pickle"):
        hf.Context(checkpoint_layout="pickle")


# What is read.

ROWS, COLUMNS = 512, 256
BIG = np.arange(ROWS * COLUMNS, dtype=np.float32).reshape(ROWS, COLUMNS)


def with_options(**options):
    return hf.Context(safetensors=hf.options.SafetensorsOptions(**options))


@pytest.fixture
def big():
    backend, url = counted()
    write(f"{url}/m.safetensors", {"other": np.zeros(ROWS * COLUMNS), "w": BIG, "z": BIG})
    backend.ranges.clear()
    return SimpleNamespace(path=f"{url}/m.safetensors", backend=backend)


def test_a_tensor_costs_its_own_bytes(big):
    same(hf.load(big.path, {"w": None}), {"w": BIG})
    assert big.backend.bytes_read() == BIG.nbytes


def test_every_byte_is_read_once_whatever_the_sharding(big):
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    for spec in (PartitionSpec("x"), PartitionSpec(None, "y"), PartitionSpec("y", "x")):
        big.backend.ranges.clear()
        target = {
            "w": jax.ShapeDtypeStruct(BIG.shape, BIG.dtype, sharding=NamedSharding(mesh, spec))
        }
        found = hf.load(big.path, target)["w"]
        assert found.sharding == target["w"].sharding
        assert np.array_equal(found, BIG)
        assert big.backend.bytes_read() == BIG.nbytes


def read(big, *region, name="w", in_flight=None, **options):
    """What one process of several reads: the part of one of its devices."""

    async def run():
        files = await open_files(await find_files(big.backend, "m.safetensors"))
        big.backend.ranges.clear()
        loading = ArrayLoadOptions(bytes_in_flight=in_flight)
        reader = TensorReader(files, loading, hf.options.SafetensorsOptions(**options))
        request = ArrayRequest(name, name, BIG.shape, "float32", regions=[region])
        return (await reader.read([request]))[0][0]

    return get_loop().run(run())


def test_rows_cost_their_own_bytes_in_requests_of_the_size_asked_for(big):
    rows = slice(100, 228), slice(0, COLUMNS)
    assert np.array_equal(read(big, *rows), BIG[100:228])
    assert [size for _, _, size in big.backend.ranges] == [128 * COLUMNS * 4]
    assert np.array_equal(read(big, *rows, read_chunk_bytes=32 * COLUMNS * 4), BIG[100:228])
    assert [size for _, _, size in big.backend.ranges] == [32 * COLUMNS * 4] * 4


def test_columns_cost_what_the_ratio_allows(big):
    columns = slice(0, ROWS), slice(64, 128)
    wanted = BIG[:, 64:128]
    assert np.array_equal(read(big, *columns, max_over_read_ratio=1.0), wanted)
    assert len(big.backend.ranges) == ROWS
    assert big.backend.bytes_read() == wanted.nbytes
    assert np.array_equal(read(big, *columns, max_over_read_ratio=3.9), wanted)
    assert big.backend.bytes_read() <= 3.9 * wanted.nbytes
    assert np.array_equal(read(big, *columns, max_over_read_ratio=4.0), wanted)
    assert len(big.backend.ranges) == 1
    assert np.array_equal(
        read(big, *columns), wanted
    )  # a gap of 768 bytes is cheaper than a request
    assert len(big.backend.ranges) == 1


def test_memory_under_way_is_bounded(big, monkeypatch):
    held, most = 0, 0
    plain = big.backend.get

    async def get(key, *, byte_range=None):
        nonlocal held, most
        size = byte_range.stop - byte_range.start if byte_range.start else 0  # not the header
        held, most = held + size, max(most, held + size)
        try:
            return await plain(key, byte_range=byte_range)
        finally:
            held -= size

    monkeypatch.setattr(big.backend, "get", get)
    limit = 16 << 10
    read(big, slice(0, ROWS), slice(0, COLUMNS), in_flight=limit, read_chunk_bytes=8 << 10)
    assert 0 < most <= limit
    assert len(big.backend.ranges) == BIG.nbytes // (8 << 10)


def test_a_thousand_small_tensors_are_one_request():
    backend, url = counted()
    tensors = {f"t{n:04d}": np.full(7, n, np.float32) for n in range(1000)}
    write(f"{url}/m.safetensors", tensors)
    same(hf.load(f"{url}/m.safetensors"), tensors)
    assert len([1 for _, start, _ in backend.ranges if start]) == 1


def test_of_an_index_only_the_files_that_are_needed_are_opened():
    backend, url = counted()
    sharded(url)
    backend.ranges.clear()
    hf.load(url, {"scale": None})
    assert {key.rpartition("/")[2] for key, _, _ in backend.ranges if "00001" in key} == set()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pieces_fill_a_region_exactly_and_keep_to_the_ratio(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 6), max_size=4)))
    region = tuple(
        slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape
    )
    ratio = data.draw(st.sampled_from([None, 1.0, 1.5, 4.0]))
    economy = Economy(data.draw(st.integers(0, 40)), ratio, data.draw(st.integers(1, 64)))
    array = np.arange(math.prod(shape), dtype=np.int16).reshape(shape)
    stored = b"\xff" * 10 + array.tobytes()
    expected = array[region]
    found = np.full(expected.shape, -1, np.int16)
    pieces = [(None, 10, piece) for piece in pieces_of(shape, 2, region, economy)]
    reads = list(coalesced(pieces, economy))
    for got in reads:
        for _, origin, piece in got.pieces:
            part = np.frombuffer(stored[origin + piece.start : origin + piece.stop], np.int16)
            assert got.start <= origin + piece.start <= origin + piece.stop <= got.stop
            target = found[(*piece.target, ...)]
            assert (target == -1).all()
            target[...] = part.reshape(piece.shape)[(*piece.inside, ...)]
    assert np.array_equal(found, expected)
    assert sum(got.wanted for got in reads) == expected.nbytes
    assert all(a.stop <= b.start for a, b in itertools.pairwise(reads))
    if ratio is not None:
        assert all(got.stop - got.start <= ratio * got.wanted for got in reads)


# Files that are replaced while they are read.


def test_files_replaced_while_they_are_read_are_read_again(monkeypatch):
    backend, url = counted()
    path = f"{url}/m.safetensors"
    write(path, {"w": np.zeros(4)})
    plain, first = backend.get, []

    async def get(key, *, byte_range=None):
        data = await plain(key, byte_range=byte_range)
        if not first:
            first.append(key)
            await backend.put(key, safetensors.numpy.save({"w": np.ones(4)}))
        return data

    monkeypatch.setattr(backend, "get", get)
    same(hf.load(path), {"w": np.ones(4)})
    assert first


def test_a_model_that_is_exported_anew_while_it_is_opened_is_read_as_the_new_one(monkeypatch):
    """The index is read, then replaced and its shards removed before they are looked at."""
    backend, url = counted()
    old = {f"t{n}": np.full(4, float(n)) for n in range(3)}
    new = {name: array + 1 for name, array in old.items()}
    for source, overwrite in ((old, False), (new, True)):
        hf.export_safetensors(source, f"{url}/{overwrite}", max_shard_bytes=32)
    plain, done = backend.get, []

    async def get(key, *, byte_range=None):
        data = await plain(key, byte_range=byte_range)
        if key.endswith("index.json") and "False" in key and not done:
            done.append(key)
            folder = key.rpartition("/")[0]
            for name in [info.key async for info in backend.walk(folder)]:
                await backend.delete(name)
            async for info in backend.walk("True"):
                renamed = info.key.replace("True/", "False/").replace("model-", "model-new-")
                body = await plain(info.key)
                if renamed.endswith(".json"):
                    body = body.replace(b"model-", b"model-new-")
                await backend.put(renamed, body)
        return data

    monkeypatch.setattr(backend, "get", get)
    same(hf.load(f"{url}/False"), new)
    assert done


def test_files_replaced_again_and_again_are_given_up_in_words(monkeypatch):
    backend, url = counted()
    path = f"{url}/m.safetensors"
    write(path, {"w": np.zeros(4)})
    plain, times = backend.get, []

    async def get(key, *, byte_range=None):
        data = await plain(key, byte_range=byte_range)
        times.append(key)
        await backend.put(key, safetensors.numpy.save({"w": np.full(4, len(times), float)}))
        return data

    monkeypatch.setattr(backend, "get", get)
    with pytest.raises(hf.errors.CheckpointChangedError, match="replaced 3 times"):
        hf.load(path)
