"""Loads in which all processes of a job do the same; each part is named in `job.start`."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tensorstore

from integration.multiprocess.parts import global_array, mesh_of, outcome

BITS = {
    "float32": (np.arange(64, dtype=np.uint32) * 0x01010101 + 0x7F800001).view(np.float32),
    "bfloat16": np.arange(64, dtype=np.uint16).view(ml_dtypes.bfloat16),
    "bool": np.arange(64) % 3 == 0,
    "int8": np.arange(64).astype(np.int8) - 32,
    "float8_e4m3fn": np.arange(64, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn),
    "int4": (np.arange(64) % 16 - 8).astype(ml_dtypes.int4),
}
SPECS: dict[str, tuple[Any, ...]] = {
    "whole": (),
    "inner": (None, "y"),
    "rows": ("y",),
    "both": ("z", "y"),
    "along": ("x",),  # is not replicated along the axis: each process reads its own
    "across": (("x", "y"),),
}


def tree(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Arrays of many dtypes and shardings, each value with bits of its own; a key; others."""
    found: dict[str, Any] = {}
    for kind, bits in BITS.items():
        for name, spec in SPECS.items():
            found[f"{kind} {name}"] = global_array(bits.reshape(8, 8), mesh, *spec)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.random.split(jax.random.key(3), 4)
    return {
        **found,
        "odd": global_array(np.arange(3, dtype=np.int8), mesh),
        "key": jax.jit(lambda: key, out_shardings=everywhere)(),
        "host": np.arange(5),
        "step": 7,
    }


def check(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Compares bit by bit what this process has."""
    for name, value in expected.items():
        if not isinstance(value, jax.Array):
            np.testing.assert_array_equal(found[name], value)
            continue
        assert found[name].sharding.is_equivalent_to(value.sharding, value.ndim), name
        got, want = found[name], value
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        assert got.dtype == want.dtype, name
        for one, other in zip(got.addressable_shards, want.addressable_shards, strict=True):
            assert np.asarray(one.data).tobytes() == np.asarray(other.data).tobytes(), name


def once(place: str) -> Any:
    """Saves; loads with one replica reading, in small windows and otherwise; says who read."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    import holdfast as hf
    from holdfast_checkpointer.arrays.read import ArrayReader

    mesh = mesh_of([2, 2, jax.device_count() // 4])
    state = tree(mesh)
    hf.save(place, state)
    hf.save_checkpointables(f"{place}-items", {"a": {"w": state["int8 rows"]}, "b": state})

    asked: list[str] = []
    original = ArrayReader.read

    async def counting(self: Any, requests: Any) -> Any:
        asked.extend(request.leaf for request in requests)
        return await original(self, requests)

    ArrayReader.read = counting  # type: ignore[method-assign]

    def context(**how: Any) -> Any:
        options = hf.options.LoadAndBroadcastOptions(**how)
        loading = hf.options.ArrayLoadOptions(
            use_load_and_broadcast=True, load_and_broadcast_options=options
        )
        return hf.Context(array=hf.options.ArrayOptions(loading=loading))

    read = {}
    for primary, limit in ((0, None), (1, 128)):
        asked.clear()
        chosen = context(primary_replica_id=primary, broadcast_memory_limit_bytes=limit)
        check(hf.load(place, state, context=chosen), state)
        read[str(primary)] = sorted(asked)
    several = hf.load_checkpointables(
        f"{place}-items", {"a": {"w": state["int8 rows"]}, "b": state}, context=context()
    )
    check(several["b"], state)
    check(several["a"], {"w": state["int8 rows"]})

    def attempt(target: Any, **how: Any) -> dict[str, Any]:
        return outcome(lambda: sorted(hf.load(place, target, context=context(**how))))

    async def broken(self: Any, requests: Any) -> Any:
        raise OSError("the disk of process 0 is gone")

    if jax.process_index() == 0:
        ArrayReader.read = broken  # type: ignore[method-assign]
    fails = attempt(state)
    ArrayReader.read = counting  # type: ignore[method-assign]
    other = {**state, "odd": np.zeros(4, np.int8)} if jax.process_index() == 1 else state
    fits_not = attempt(other)
    turned = jax.sharding.Mesh(mesh.devices[::-1], mesh.axis_names)
    elsewhere = global_array(np.arange(3, dtype=np.int8), turned)
    other = {**state, "odd": elsewhere} if jax.process_index() == 1 else state
    differs = attempt(other)
    absent = attempt(state, primary_replica_id=2)
    warned: list[str] = []
    log = logging.getLogger("holdfast_checkpointer.arrays.broadcast")
    log.addFilter(lambda record: warned.append(record.getMessage()) or True)  # type: ignore[func-returns-value]
    check(hf.load(place, state, context=context(replica_axis_index=5)), state)
    check(hf.load(place, state, context=context()), state)
    return {
        "read": read,
        "fails": fails,
        "fits not": fits_not,
        "differs": differs,
        "absent": absent,
        "warned": warned,
    }


# Of each array its shape and dtype; the axes of the mesh it lies along in four ways, one for
# each job: a mesh of axes x, y and z. Axes that a job's mesh lacks are left out.
WAYS: dict[str, tuple[tuple[int, ...], str, tuple[tuple[Any, ...], ...]]] = {
    "rows": ((16, 6), "float32", (("x",), (("x", "y"),), (), ("y",))),
    "inner": ((4, 16, 8), "bfloat16", ((None, "y"), (None, None, "x"), (None, "x", "y"), ())),
    "both": ((8, 8), "int32", (("x", "y"), ("y", "x"), ("y",), (None, ("y", "x")))),
    "joined": ((16, 3), "uint16", ((("x", "y"),), ("x",), (("y", "x"),), ("x",))),
    "deep": ((8, 8, 8), "float32", (("x", "y", "z"), ("z", None, "x"), (), (None, "z", "y"))),
    "whole": ((5, 7), "float64", ((), (), (), ())),
    "four bits": ((8, 16), "int4", (("x",), (None, "y"), ("y", "x"), ("x",))),
    "eight bits": ((16,), "float8_e5m2", (("y",), ("x",), (), (("x", "y"),))),
    "complex": ((8, 4), "complex64", ((None, "x"), ("y",), ("x",), ())),
    "empty": ((0, 8), "float32", ((None, "x"), (), (None, "y"), ())),
    "number": ((), "int32", ((), (), (), ())),
    "keys": ((8,), "key", (("x",), ("y",), (), (("x", "y"),))),
    "many keys": ((8, 4), "key", (("x", "y"), (None, "x"), ("y",), ())),
}


def laid_out(mesh: jax.sharding.Mesh, way: int) -> dict[str, Any]:
    """The arrays in one of the four ways, values included."""
    found = {}
    for seed, (name, (shape, kind, ways)) in enumerate(WAYS.items()):
        spec = tuple(_within(part, mesh) for part in ways[way])
        if kind == "key":
            sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
            make = functools.partial(jax.random.split, jax.random.key(seed), shape)
            found[name] = jax.jit(make, out_shardings=sharding)()
        else:
            numbers = np.arange(math.prod(shape)).reshape(shape) * (seed + 1) % 15 - 7
            dtype = jax.dtypes.canonicalize_dtype(jnp.dtype(kind))
            found[name] = global_array(numbers.astype(dtype), mesh, *spec)
    return {**found, "host": np.arange(6) + 0.5, "words": {"name": "adam", "step": 7}}


def _within(part: Any, mesh: jax.sharding.Mesh) -> Any:
    """A part of a spec without the axes that the mesh lacks."""
    if isinstance(part, tuple):
        return tuple(axis for axis in part if axis in mesh.axis_names) or None
    return part if part in mesh.axis_names else None


def relay(source: str | None, place: str, shape: Sequence[int], way: int) -> Any:
    """Loads what a job before has saved onto this job's mesh, compares it, and saves it anew."""
    import holdfast as hf

    expected = laid_out(mesh_of(shape), way)
    if source is None:
        saving = hf.options.ArraySaveOptions(chunk_bytes=64)
        hf.save(place, expected, context=hf.Context(array=hf.options.ArrayOptions(saving=saving)))
        return "saved"
    found = hf.load(source, expected)
    assert found.pop("words") == expected.pop("words")
    check(found, expected)
    found["words"] = {"name": "adam", "step": 7}
    hf.save(place, found)
    return "relayed"


def bytes_read(load: Callable[[], Any]) -> tuple[int, Any]:
    """How many bytes of files this process reads for arrays, and what it gets."""

    def count() -> int:
        found = tensorstore.experimental_collect_matching_metrics("/tensorstore/kvstore/file/")
        totals = [each for each in found if each["name"].endswith("/bytes_read")]
        return sum(value["value"] for each in totals for value in each["values"])

    before = count()
    loaded = load()
    return count() - before, loaded


def partly(place: str) -> dict[str, Any]:
    """Loads onto devices of two processes, and of one alone; says what was read for it."""
    import holdfast as hf

    own = [device for device in jax.devices() if device.process_index == 0]
    blocks, line, first = mesh_of([2, 2]), mesh_of([4]), jax.sharding.Mesh(np.array(own), ("x",))
    big = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    keys = np.arange(8, dtype=np.uint32).reshape(4, 2)
    state = {
        "w": global_array(big, blocks, "x", "y"),
        "keys": jax.random.wrap_key_data(global_array(keys, line, "x", None)),
        "own": jnp.arange(4.0),  # each process has one, on a device of its own
        "n": 7,
    }
    hf.save(place, state)
    check(hf.load(place), state)

    def target(name: str, mesh: Any, *spec: Any, **other: Any) -> dict[str, Any]:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        like = {"shape": state[name].shape, "dtype": state[name].dtype, **other}
        return {
            **dict.fromkeys(state, hf.PLACEHOLDER),
            name: jax.ShapeDtypeStruct(**like, sharding=sharding),
        }

    read = {}
    for name, mesh, spec in (
        ("rows", line, ("x",)),
        ("columns", line, (None, "x")),
        ("whole", line, ()),
        ("first", first, ("x",)),
        ("whole first", first, ()),
    ):
        wanted = target("w", mesh, *spec)
        read[name], found = bytes_read(lambda wanted=wanted: hf.load(place, wanted))
        check({"w": found["w"]}, {"w": global_array(big, mesh, *spec)})

    loading = hf.options.ArrayLoadOptions(enable_padding_and_truncation=True)
    padding = hf.Context(array=hf.options.ArrayOptions(loading=loading))
    elsewhere = {
        "padded": hf.load(place, target("w", first, "x", shape=(1030, 9)), context=padding)["w"],
        "cast": hf.load(place, target("w", first, dtype=jnp.bfloat16))["w"],
        "keys": hf.load(place, target("keys", first, "x"))["keys"],
    }
    assert elsewhere["padded"].shape == (1030, 9)
    assert elsewhere["cast"].dtype == jnp.bfloat16
    assert jnp.issubdtype(elsewhere["keys"].dtype, jax.dtypes.prng_key)
    on_all = jax.sharding.NamedSharding(line, jax.sharding.PartitionSpec())
    fallen = hf.load(place, fallback_sharding=on_all)
    return {
        "read": read,
        "shards": {name: len(value.addressable_shards) for name, value in elsewhere.items()},
        "own": fallen["own"].is_fully_addressable,
    }
