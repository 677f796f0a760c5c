"""Every built-in handler and checkpointer of both interfaces, in all processes of a job."""

from __future__ import annotations

import threading
import time
from typing import Any

import jax
import numpy as np

from holdfast_checkpointer.multihost import jax_service
from holdfast_storage.loop import get_loop
from integration.multiprocess.parts import check, global_array, mesh_of, outcome, state


def every_handler(folder: str) -> Any:
    """Saves with each, loads again, and says what went otherwise than in one process."""
    from google.protobuf import struct_pb2

    import holdfast as hf

    mesh = mesh_of([jax.device_count()])
    tree = state(mesh)
    array = tree["arrays"]["rows"]
    message = struct_pb2.Value(number_value=7)
    key = jax.random.key(7)

    def v0(name: str, checkpointer: Any, save: Any, restore: Any, right: Any) -> None:
        with checkpointer as opened:
            opened.save(f"{folder}/{name}", save)
            getattr(opened, "wait_until_finished", lambda: None)()
            right(opened.restore(f"{folder}/{name}", restore))

    def rows(found: Any) -> None:
        check({**tree, "arrays": {**tree["arrays"], "rows": found}})

    def same(expected: Any) -> Any:
        def right(found: Any) -> None:
            assert found == expected, found

        return right

    plain = {**tree, "numbers": {"step": 7, "rate": 0.5}}  # StandardSave takes no text

    def without_text(found: Any) -> None:
        check({**found, "numbers": {**found["numbers"], "name": "adam"}})

    def whole(found: Any) -> None:
        without_text(found["state"])
        assert found["meta"] == {"n": [1]}
        assert found["proto"] == message
        assert jax.random.key_data(found["key"]).tolist() == jax.random.key_data(key).tolist()
        rows(found["one"])

    def random_state(found: Any) -> None:
        assert (found[1] == np.random.RandomState(3).get_state()[1]).all()

    def checkpointables() -> None:
        place = f"{folder}/checkpointables"
        hf.save_checkpointables(place, {"state": tree, "proto": message, "more": {"w": array}})
        targets = {"state": tree, "proto": struct_pb2.Value, "more": {"w": array}}
        found = hf.load_checkpointables(place, targets)
        check(found["state"])
        assert found["proto"] == message
        rows(found["more"]["w"])

    numpy_state = np.random.RandomState(3).get_state()
    a = hf.args
    composite = a.Composite(
        state=a.StandardSave(plain),
        meta=a.JsonSave({"n": [1]}),
        proto=a.ProtoSave(message),
        key=a.JaxRandomKeySave(key),
        one=a.ArraySave(array),
    )
    back = a.Composite(
        state=a.StandardRestore(plain),
        meta=a.JsonRestore(),
        proto=a.ProtoRestore(struct_pb2.Value),
        key=a.JaxRandomKeyRestore(),
        one=a.ArrayRestore(restore_args=a.ArrayRestoreArgs(sharding=array.sharding)),
    )
    made: dict[str, tuple[Any, ...]] = {
        "pytree": (
            hf.Checkpointer(hf.PyTreeCheckpointHandler()),
            a.PyTreeSave(tree),
            a.PyTreeRestore(tree),
            check,
        ),
        "standard": (hf.StandardCheckpointer(), plain, plain, without_text),
        "async": (
            hf.AsyncCheckpointer(hf.StandardCheckpointHandler()),
            a.StandardSave(plain),
            a.StandardRestore(plain),
            without_text,
        ),
        "json": (
            hf.Checkpointer(hf.JsonCheckpointHandler()),
            a.JsonSave({"a": 1}),
            a.JsonRestore(),
            same({"a": 1}),
        ),
        "proto": (
            hf.Checkpointer(hf.ProtoCheckpointHandler("m.pbtxt")),
            a.ProtoSave(message),
            a.ProtoRestore(struct_pb2.Value),
            same(message),
        ),
        "numpy key": (
            hf.Checkpointer(hf.NumpyRandomKeyCheckpointHandler()),
            a.NumpyRandomKeySave(numpy_state),
            a.NumpyRandomKeyRestore(),
            random_state,
        ),
        "composite": (
            hf.AsyncCheckpointer(hf.CompositeCheckpointHandler()),
            composite,
            back,
            whole,
        ),
    }
    done = {name: outcome(v0, name.replace(" ", "_"), *how) for name, how in made.items()}
    done["checkpointables"] = outcome(checkpointables)
    me = jax.process_index()
    differ = hf.Checkpointer(hf.JsonCheckpointHandler())
    done["json that differs"] = outcome(differ.save, f"{folder}/differ", a.JsonSave({"a": me}))
    return {name: said.get("message") for name, said in done.items()}


def some_take_part(folder: str) -> Any:
    """Saves by subsets with any primary, two at once in two threads; fails once; counts keys."""
    import holdfast as hf

    me = jax.process_index()

    def context(primary: int, active: set[int] | None) -> Any:
        options = hf.options.MultiprocessingOptions(primary_host=primary, active_processes=active)
        return hf.Context(multiprocessing=options)

    def tree_of(processes: set[int]) -> Any:
        devices = [d for d in jax.devices() if d.process_index in processes]
        mesh = jax.sharding.Mesh(np.array(devices, dtype=object), ("x",))
        return {"w": global_array(np.arange(16.0), mesh, "x"), "n": np.arange(3), "step": 7}

    def round_trip(name: str, primary: int, active: set[int] | None, *, bad: int = -1) -> Any:
        processes = active or set(range(jax.process_count()))
        tree = tree_of(processes)
        if me == bad:
            tree["step"] = 8
        hf.save(f"{folder}/{name}", tree, context=context(primary, active))
        found = hf.load(f"{folder}/{name}", tree, context=context(primary, active))
        for shard in found["w"].addressable_shards:
            assert (np.asarray(shard.data) == np.arange(16.0)[shard.index]).all()
        return found["step"]

    done = {}
    if me in (1, 3):
        done["odd"] = outcome(round_trip, "odd", 3, {1, 3})
        done["differs"] = outcome(round_trip, "differs", 1, {1, 3}, bad=3)
    else:
        done["even"] = outcome(round_trip, "even", 0, {0, 2})
        done["apart"] = outcome(hf.save, f"{folder}/x", {"n": 1}, context=context(1, {1, 3}))
    done["third"] = outcome(round_trip, "third", 2, None)

    def one(name: str, primary: int) -> None:
        done[name] = outcome(round_trip, name, primary, None)

    order = [("left", 1), ("right", 3)]
    threads = [threading.Thread(target=one, args=each) for each in order[:: 1 if me % 2 else -1]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"done": done, "left": keys_left()}


def keys_left() -> list[str]:
    """The keys that stay once all have left: the last who leaves an operation removes its own."""
    until = time.monotonic() + 20
    while True:
        left = get_loop().run(jax_service.JaxService().list("holdfast"))
        if not left or time.monotonic() > until:
            return sorted(left)
        time.sleep(0.2)
