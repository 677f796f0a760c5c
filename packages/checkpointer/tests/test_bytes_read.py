"""What a load reads, counted by the operating system: the chunks it needs, each once."""

import logging
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import holdfast_checkpointer as hc
from holdfast_checkpointer.arrays.options import StorageOptions

_COUNTED = Path("/proc/self/io")
pytestmark = pytest.mark.skipif(
    not _COUNTED.exists(), reason="this system does not count the bytes that a process reads"
)
LENIENT = hc.Context(
    array=hc.options.ArrayOptions(
        loading=hc.options.ArrayLoadOptions(enable_padding_and_truncation=True)
    ),
    pytree=hc.options.PyTreeOptions(loading=hc.options.PyTreeLoadOptions(partial_load=True)),
)
ROWS, COLUMNS = 1000, 2048  # 8 MiB, in chunks of 125 rows


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two arrays of eight chunks; one that two devices hold; many that are small."""
    rng = np.random.default_rng(5)
    mesh = jax.make_mesh((2,), ("x",), devices=jax.devices()[:2])
    arrays = {name: rng.random((ROWS, COLUMNS), np.float32) for name in ("one", "two")}
    tree = {
        **arrays,
        "halves": jax.device_put(arrays["one"], NamedSharding(mesh, PartitionSpec("x"))),
        "small": {str(i): rng.random(100, np.float32) for i in range(1000)},
        "sharded": {
            str(i): jax.device_put(
                rng.random(64, np.float32), NamedSharding(mesh, PartitionSpec("x"))
            )
            for i in range(200)
        },
    }
    place = tmp_path_factory.mktemp("read") / "c"
    saving = hc.options.ArraySaveOptions(chunk_bytes=1 << 20)
    hc.save(place, tree, context=hc.Context(array=hc.options.ArrayOptions(saving=saving)))
    return place, tree


def counted():
    return int(re.search(r"rchar: (\d+)", _COUNTED.read_text()).group(1))


def bytes_read(place, target, context=LENIENT):
    """What one load reads, and its result; modules and caches are warm by then."""
    hc.load(place, target, context=context)
    before = counted()
    found = hc.load(place, target, context=context)
    return counted() - before, found


def documents(place):
    """What is read whatever is selected: the record, the tree, the digests."""
    return bytes_read(place, {})[0]


def index_of(place, tree):
    """The database's index, where the small arrays lie as well."""
    return bytes_read(place, {"small": {"0": tree["small"]["0"]}})[0] - documents(place)


def over(devices, spec, shape=(ROWS, COLUMNS)):
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, np.float32, sharding=sharding)


SELECTIONS = {
    "a whole leaf": np.empty((ROWS, COLUMNS), np.float32),
    "over eight devices by rows": over(8, ("x",)),
    "over eight devices by columns": over(8, (None, "x")),
    "over five devices, which share chunks": over(5, ("x",)),
    "the first half of the rows": over(4, ("x",), (500, COLUMNS)),
    "the first chunk's rows": over(1, (), (125, COLUMNS)),
    "more rows than were saved": over(8, ("x",), (1200, COLUMNS)),
}


@pytest.mark.parametrize("leaf", ["one", "halves"])
@pytest.mark.parametrize("target", SELECTIONS.values(), ids=SELECTIONS)
def test_a_selection_of_leaves_and_leading_rows_reads_what_it_selects(saved, leaf, target):
    place, tree = saved
    read, found = bytes_read(place, {leaf: target})
    rows = min(target.shape[0], ROWS)
    selected = rows * COLUMNS * 4
    read -= documents(place) + index_of(place, tree)
    assert selected <= read + 1_000  # counting sees the bytes
    assert read <= 1.1 * selected
    np.testing.assert_array_equal(np.asarray(found[leaf])[:rows], np.asarray(tree[leaf])[:rows])


@pytest.mark.parametrize("group", ["small", "sharded"])
def test_many_small_arrays_read_the_index_once(saved, group):
    place, tree = saved
    read, found = bytes_read(place, {group: tree[group]})
    assert read - documents(place) <= 1.1 * index_of(place, tree) + 100_000
    for name, value in tree[group].items():
        np.testing.assert_array_equal(found[group][name], value)


def test_selecting_along_other_axes_than_the_chunks_are_cut_is_reported(saved, caplog):
    place, _ = saved
    narrow = over(1, (), (ROWS, 256))
    with caplog.at_level(logging.INFO, "holdfast_checkpointer"):
        read, _ = bytes_read(place, {"two": narrow})
    assert read > 7 * ROWS * 256 * 4  # eight times, for a chunk is verified whole
    (message, _) = [r.getMessage() for r in caplog.records if "are read for" in r.getMessage()]
    assert "['two'], [125, 2048], of which 8.0 times" in message
    caplog.clear()
    with caplog.at_level(logging.INFO, "holdfast_checkpointer"):
        hc.load(place, {"two": over(8, (None, "x"))}, context=LENIENT)
    assert "are read for" not in caplog.text


def test_chunks_cut_along_the_axis_of_the_readers_read_only_theirs(tmp_path):
    array = np.random.default_rng(6).random((ROWS, COLUMNS), np.float32)
    options = StorageOptions(shard_axes=(1,), chunk_byte_size=1 << 20)
    saving = hc.options.ArraySaveOptions(storage_options=options)
    context = hc.Context(array=hc.options.ArrayOptions(saving=saving))
    hc.save(tmp_path / "c", {"a": array}, context=context)
    read, found = bytes_read(tmp_path / "c", {"a": over(1, (), (ROWS, 256))})
    assert read <= 1.1 * ROWS * 256 * 4 + documents(tmp_path / "c")
    np.testing.assert_array_equal(found["a"], array[:, :256])
