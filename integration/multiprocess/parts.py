"""What the processes of the jobs under test do; each is named in `job.start`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_storage.loop import get_loop


def coordinate(culprit: int | None) -> Any:
    """Agrees with the others; process `culprit` fails where it alone works."""
    me = jax_service.process_index()
    coordinator = Coordinator(
        jax_service.JaxService(), me=me, processes=range(jax.process_count()), primary=0
    )

    async def part() -> dict[str, Any]:
        async with coordinator.operation("save somewhere") as operation:
            verdict = await operation.vote(
                "trees", b"%d" % me, lambda b: b",".join(b[p] for p in sorted(b))
            )
            operation.enter("the write")
            if me == culprit:
                raise OSError("the disk of params.w is full")
            if culprit is not None:
                await operation.until_failure(asyncio.sleep(60))
            await operation.barrier("written")
            ended = await operation.conclude(b"done" if operation.is_primary else None)
            return {"verdict": verdict.decode(), "ended": ended.decode()}

    began = time.monotonic()
    try:
        found = get_loop().run(part())
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    found["seconds"] = time.monotonic() - began
    time.sleep(0.5 if me == 0 else 0.0)
    left = get_loop().run(jax_service.JaxService().list("holdfast")) if me == 0 else {}
    return {**found, "left": sorted(left)}


def mesh_of(shape: Sequence[int]) -> jax.sharding.Mesh:
    """All devices of the job, as the axes `x`, `y` and so on."""
    count = math.prod(shape)
    grid = np.array(jax.devices()[:count], dtype=object).reshape(shape)
    return jax.sharding.Mesh(grid, tuple("xyz"[: len(shape)]))


def global_array(value: np.ndarray[Any, Any], mesh: jax.sharding.Mesh, *spec: Any) -> jax.Array:
    """An array over the devices of all processes; each makes its own shards."""
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return jax.make_array_from_callback(
        value.shape, sharding, lambda index: value[index], dtype=value.dtype
    )


SPECS: dict[str, tuple[tuple[int, ...], str, tuple[Any, ...]]] = {
    "rows": ((16, 6), "float32", ("x",)),
    "columns": ((6, 16), "int32", (None, "x")),
    "both": ((8, 16), "bfloat16", ("x", "y")),
    "joined": ((16, 4), "float32", (("x", "y"),)),
    "inner": ((4, 16, 3), "float32", (None, "y", None)),
    "replicated": ((40, 5), "float32", ()),
    "empty": ((0, 4), "float32", ()),
    "scalar": ((), "int32", ()),
}


def values(name: str) -> np.ndarray[Any, Any]:
    """What the array of a name holds."""
    shape, dtype, _ = SPECS[name]
    seed = sorted(SPECS).index(name)
    found = np.arange(math.prod(shape)).reshape(shape) + 1000 * seed
    return np.asarray(found % 250, jnp.dtype(dtype))


def state(mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """A tree with every way to be sharded, and with leaves that each process has whole."""
    usable = set(mesh.axis_names)

    def fits(part: Any) -> Any:
        names = part if isinstance(part, tuple) else (part,)
        return part if set(names) - {None} <= usable else None

    arrays = {
        name: global_array(values(name), mesh, *map(fits, spec))
        for name, (_, _, spec) in SPECS.items()
    }
    return {
        "arrays": arrays,
        "key": jax.random.key(7),
        "host": np.arange(10),
        "numbers": {"step": 7, "rate": 0.5, "name": "adam"},
    }


def check(found: Any) -> None:
    """Compares what was loaded, as far as this process has it."""
    for name in SPECS:
        array, expected = found["arrays"][name], values(name)
        assert array.shape == expected.shape, name
        assert array.dtype == expected.dtype, name
        if not isinstance(array, jax.Array):
            np.testing.assert_array_equal(np.asarray(array), expected, err_msg=name)
            continue
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(
                np.asarray(shard.data), expected[shard.index], err_msg=name
            )
    np.testing.assert_array_equal(np.asarray(found["host"]), np.arange(10))
    assert found["numbers"] == {"step": 7, "rate": 0.5, "name": "adam"}
    expected_key = jax.random.key_data(jax.random.key(7))
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), expected_key)


def save(
    place: str, shape: Sequence[int], chunk_bytes: int | None = None, without: str = ""
) -> Any:
    """Saves together, perhaps without one of the arrays."""
    import holdfast as hf

    context = None
    if chunk_bytes is not None:
        saving = hf.options.ArraySaveOptions(chunk_bytes=chunk_bytes)
        context = hf.Context(array=hf.options.ArrayOptions(saving=saving))
    tree = state(mesh_of(shape))
    tree["arrays"].pop(without, None)
    hf.save(place, tree, context=context)
    return "saved"


def save_replicated(place: str) -> Any:
    """Saves a large array that all have whole, with large and small ones; then as one writes it."""
    import holdfast as hf

    mesh = mesh_of([jax.device_count()])
    tree = {"w": global_array(np.zeros((16, 1 << 20), np.uint8), mesh)}
    for number in range(6):
        size = (1 << 20) if number % 2 else 64
        tree[f"{number}"] = global_array(np.full(size, number, np.uint8), mesh)
    hf.save(f"{place}-divided", tree)
    saving = hf.options.ArraySaveOptions(use_replica_parallel=False)
    hf.save(
        f"{place}-by-one", tree, context=hf.Context(array=hf.options.ArrayOptions(saving=saving))
    )
    return "saved"


def outcome(work: Any, *arguments: Any, **how: Any) -> dict[str, Any]:
    """What some work returns or raises, and after how long."""
    began = time.monotonic()
    try:
        said: dict[str, Any] = {"value": work(*arguments, **how)}
    except Exception as error:
        kinds = [kind.__name__ for kind in type(error).__mro__]
        said = {"error": kinds, "message": str(error), "process": getattr(error, "process", None)}
        said["phase"] = getattr(error, "phase", None)
    return {**said, "seconds": time.monotonic() - began}


def disagree(folder: str) -> Any:
    """Saves trees that differ between the processes, one way after the other; then one alike."""
    import holdfast as hf

    me = jax.process_index()
    mesh = mesh_of([jax.device_count()])
    same = {"w": global_array(np.ones((8, 2), np.float32), mesh, "x"), "n": np.arange(3)}
    nan = np.uint32(0x7FC00000).view(np.float32)
    trees = {
        "leaf": {**same, **({"extra": 1} if me else {})},
        "value": {**same, "n": np.arange(3) + me},
        "number": {**same, "step": 7 + me},
        "shape": {**same, "n": np.arange(3 + me)},
        "dtype": {**same, "n": np.arange(3).astype(np.float32 if me else np.int64)},
        "own": {**same, "own": jnp.arange(3) + me},
        "scalar": {**same, "scalar": jnp.float32(me)},
        "zero": {**same, "zero": np.array([-0.0 if me else 0.0])},
        "nan": {**same, "nan": np.array([nan, (nan.view(np.uint32) + me).view(np.float32)])},
        "elsewhere": {**same, "elsewhere": only_on(1)},
        "alike": {**same, "nan": np.array([nan, -0.0]), "scalar": jnp.float32(2)},
        "given": given_in_parts(mesh),
    }
    found = {name: outcome(hf.save, f"{folder}/{name}", trees[name]) for name in trees}
    alike, given = trees["alike"], trees["given"]
    loaded = hf.load(f"{folder}/given", given)
    for name, array in given.items():
        for shard, other in zip(
            array.addressable_shards, loaded[name].addressable_shards, strict=True
        ):
            np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(other.data), name)
    again = hf.load(f"{folder}/alike", alike)
    assert again["nan"].tobytes() == alike["nan"].tobytes()
    assert again["scalar"] == 2
    return found


def only_on(process: int) -> jax.Array:
    """An array on the devices of one process, of which the others have nothing."""
    devices = [d for d in jax.devices() if d.process_index == process]
    mesh = jax.sharding.Mesh(np.array(devices, dtype=object), ("x",))
    return global_array(np.arange(8, dtype=np.float32), mesh, "x")


def given_in_parts(mesh: jax.sharding.Mesh) -> dict[str, jax.Array]:
    """Arrays of which each process gives its part, and one that is not on all devices of any."""
    me, count = jax.process_index(), jax.process_count()
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    part = np.full((4, 3), me, np.float32)
    firsts = [next(d for d in jax.devices() if d.process_index == p) for p in range(count)]
    some = jax.sharding.Mesh(np.array(firsts, dtype=object), ("x",))
    return {
        "local": jax.make_array_from_process_local_data(rows, part, (4 * count, 3)),
        "some devices": global_array(np.arange(8 * count, dtype=np.float32), some, "x"),
        "copied": global_array(np.arange(5, dtype=np.int32), some),
    }


PHASES = ("path", "scheme", "options", "validation", "host", "write", "seal", "merge", "commit")


def asked(phase: str, place: str, tree: Any) -> dict[str, Any]:
    """What is saved by the process that fails in a phase."""
    import holdfast as hf

    wrong = hf.options.MultiprocessingOptions(active_processes={0, 7})
    given: dict[str, dict[str, Any]] = {
        "path": {"path": 7},
        "scheme": {"path": "nowhere://bucket/x"},
        "options": {"context": hf.Context(multiprocessing=wrong)},
        "validation": {"state": {**tree, "bad": object()}},
    }
    return {"path": place, "state": tree, **given.get(phase, {})}


def fail(folder: str) -> Any:
    """Fails in one phase after the other, on one process after the other; then saves again."""
    import holdfast as hf

    me = jax.process_index()
    tree = state(mesh_of([jax.device_count()]))
    found = {}
    for phase in PHASES:
        for culprit in range(jax.process_count()):
            if phase in ("merge", "commit") and culprit:
                continue  # only the primary does this
            place = f"{folder}/{phase}-{culprit}"
            hit = me == culprit
            with broken(phase if hit else None):
                saving = asked(phase if hit else "", place, tree)
                found[f"{phase}-{culprit}"] = outcome(hf.save, **saving)
            found[f"{phase}-{culprit}"]["again"] = outcome(hf.save, place, tree)
    return found


@contextlib.contextmanager
def broken(phase: str | None) -> Iterator[None]:
    """Lets this process fail in a phase of its next save, as storage would."""
    from holdfast_checkpointer.arrays import snapshot
    from holdfast_checkpointer.handlers.staged_tree import StagedPyTree
    from holdfast_local.backend import LocalBackend
    from holdfast_storage.commit.rename import RenameCommit

    where: dict[str, tuple[Any, str]] = {
        "host": (snapshot, "_copied"),
        "write": (StagedPyTree, "write"),
        "seal": (LocalBackend, "sync_prefix"),
        "merge": (StagedPyTree, "finish"),
        "commit": (RenameCommit, "commit"),
    }
    if phase not in where:
        yield
        return
    kind, name = where[phase]
    original = getattr(kind, name)

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(28, f"no space left for the {phase}")

    setattr(kind, name, refuse)
    try:
        yield
    finally:
        setattr(kind, name, original)


def stall(folder: str) -> Any:
    """Process 1 comes late: beyond the deadline, then within it as it gets on."""
    import holdfast as hf

    me = jax.process_index()
    options = hf.options.MultiprocessingOptions(deadline_secs=1.5)
    context = hf.Context(multiprocessing=options)
    tree = state(mesh_of([jax.device_count()]))
    if me == 1:
        time.sleep(6)
    late = outcome(hf.save, f"{folder}/late", tree, context=context)
    if me == 0:
        time.sleep(6)
    taken = outcome(hf.save, f"{folder}/again", tree)
    return {
        "late": late,
        "again": taken,
        "taken": outcome(hf.save, f"{folder}/again", tree),
    }


def save_in_background(folder: str) -> Any:
    """Several saves, to several places at once, from arrays that are donated meanwhile."""
    import holdfast as hf

    mesh = mesh_of([jax.device_count()])
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    w = global_array(np.zeros((64, 64), np.float32), mesh, "x")
    responses = []
    for step in range(4):
        responses.append(hf.save_async(f"{folder}/{step}", {"w": w, "step": step}))
        w = add(w)
    for response in responses:
        response.result()
    loaded = [hf.load(f"{folder}/{step}", {"w": w, "step": 0}) for step in range(4)]
    return [
        all((np.asarray(s.data) == step).all() for s in found["w"].addressable_shards)
        and found["step"] == step
        for step, found in enumerate(loaded)
    ]


def save_unshared(place: str) -> Any:
    """Saves where the processes do not see each other's files."""
    import holdfast as hf

    return outcome(hf.save, place, state(mesh_of([jax.device_count()])))


def save_until_killed(folder: str, victim: int) -> Any:
    """Saves step after step; the victim kills itself in the middle of a write."""
    import holdfast as hf
    from holdfast_checkpointer.handlers.staged_tree import StagedPyTree

    tree = state(mesh_of([jax.device_count()]))
    hf.save(f"{folder}/0", tree)
    if jax.process_index() == victim:

        async def die(*_: Any) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        StagedPyTree.write = die  # type: ignore[method-assign, assignment]
    options = hf.options.MultiprocessingOptions(deadline_secs=5)
    return outcome(hf.save, f"{folder}/1", tree, context=hf.Context(multiprocessing=options))


def load_as_saved(place: str) -> Any:
    """Loads without a target: everything goes where it was, or is refused."""
    import holdfast as hf

    def work() -> str:
        found = hf.load(place)
        check(found)
        return str(found["arrays"]["rows"].sharding)

    return outcome(work)


def orbax_load(place: str, shape: Sequence[int]) -> Any:
    """Orbax loads, in all processes, what holdfast saved."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    from orbax.checkpoint import v1 as ocp

    target = state(mesh_of(shape))
    empty = target["arrays"].pop("empty")
    found = ocp.load(place, target)
    found["arrays"]["empty"] = empty
    check(found)
    return "loaded"


def orbax_save(place: str, shape: Sequence[int]) -> Any:
    """Orbax saves, in all processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    from orbax.checkpoint import v1 as ocp

    tree = state(mesh_of(shape))
    tree["arrays"].pop("empty")  # Orbax refuses it, and a key that each process has
    tree.pop("key")
    ocp.save(place, tree)
    return "saved"


def load_from_orbax(place: str, shape: Sequence[int]) -> Any:
    """Loads, in all processes, what Orbax saved."""
    import holdfast as hf

    target = state(mesh_of(shape))
    empty = target["arrays"].pop("empty")
    key = target.pop("key")
    found = hf.load(place, target)
    found["arrays"]["empty"] = empty
    check({**found, "key": key})
    return "loaded"
