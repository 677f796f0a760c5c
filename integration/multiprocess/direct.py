"""Handlers called directly, and handlers of users' that leave a part to one of holdfast's."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from integration.multiprocess.handlers import keys_left
from integration.multiprocess.parts import global_array, mesh_of, outcome


def _tree() -> dict[str, Any]:
    mesh = mesh_of([jax.device_count()])
    whole = np.arange(24, dtype=np.float32).reshape(8, 3)
    return {
        "rows": global_array(whole, mesh, "x"),
        "same": global_array(whole, mesh),
        "n": np.arange(3),
        "step": 7,
    }


def _check(found: Any) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3)
    for name in ("rows", "same"):
        for shard in found[name].addressable_shards:
            np.testing.assert_array_equal(np.asarray(shard.data), whole[shard.index])
    assert found["step"] == 7
    assert list(found["n"]) == [0, 1, 2]


def call_handlers(folder: str) -> Any:
    """Saves with each handler, completes it, and restores."""
    from google.protobuf import struct_pb2

    import holdfast as hf

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    me, a, tree = jax.process_index(), hf.args, _tree()
    message = struct_pb2.Value(number_value=7)
    composite = a.Composite(
        state=a.StandardSave(tree), meta=a.JsonSave({"n": 1}), key=a.JaxRandomKeySave(_key())
    )
    back = a.Composite(
        state=a.StandardRestore(tree), meta=a.JsonRestore(), key=a.JaxRandomKeyRestore()
    )

    def one(name: str, handler: Any, save: Any, restore: Any, right: Any, *, all_: bool) -> None:
        place = f"{folder}/{name}"
        handler.save(place, args=save)
        if all_ or me == 0:
            handler.finalize(place)
        if not all_:
            multihost_utils.sync_global_devices(name)
        right(handler.restore(place, args=restore))
        right(type(handler)().restore(place, args=restore))

    def same(expected: Any) -> Any:
        def right(found: Any) -> None:
            assert found == expected, found

        return right

    def items(found: Any) -> None:
        _check(found.state)
        assert found.meta == {"n": 1}
        assert (jax.random.key_data(found.key) == jax.random.key_data(_key())).all()

    def behind() -> None:
        place, handler = f"{folder}/behind", hf.StandardCheckpointHandler()
        futures = asyncio.run(handler.async_save(place, args=a.StandardSave(tree)))
        handler.finalize(place)
        assert [future.result() for future in futures] == [None]
        _check(handler.restore(place, args=a.StandardRestore(tree)))
        assert handler.metadata(place)["rows"].shape == (8, 3)

    standard, tree_handler = hf.StandardCheckpointHandler, hf.PyTreeCheckpointHandler
    proto, json = hf.ProtoCheckpointHandler, hf.JsonCheckpointHandler
    ways = {
        "standard": (standard(), a.StandardSave(tree), a.StandardRestore(tree), _check),
        "tree": (tree_handler(), a.PyTreeSave(tree), a.PyTreeRestore(tree), _check),
        "json": (json(), a.JsonSave({"n": 1}), a.JsonRestore(), same({"n": 1})),
        "proto": (
            proto(),
            a.ProtoSave(message),
            a.ProtoRestore(struct_pb2.Value),
            same(message),
        ),
        "items": (hf.CompositeCheckpointHandler(), composite, back, items),
    }
    done = {
        f"{name} {'all' if all_ else 'one'}": outcome(
            one, f"{name}-{'all' if all_ else 'one'}", *how, all_=all_
        )
        for all_ in (True, False)
        for name, how in ways.items()
    }
    done["behind"] = outcome(behind)
    done["v1"] = outcome(_call_v1, f"{folder}/v1", tree)
    done["part of the job"] = outcome(_call_alone, f"{folder}/alone-{me}")
    handler = standard()
    bad = {**tree, "bad": object()} if me else tree
    return {
        "done": {name: said.get("message") for name, said in done.items()},
        "differs": outcome(handler.save, f"{folder}/differs", {**tree, "step": me}),
        "bad": outcome(handler.save, f"{folder}/bad", bad),
        "elsewhere": outcome(handler.save, f"{folder}/elsewhere", {"w": _on_the_last()}),
        "taken": outcome(handler.save, f"{folder}/standard-all", tree),
        "left": keys_left(),
    }


def _call_v1(place: str, tree: Any) -> None:
    import holdfast as hf

    async def work() -> Any:
        handler = hf.handlers.PyTreeHandler()
        await (await handler.save(_Made(place), tree))
        return await (await handler.load(place, tree))

    _check(asyncio.run(work()))


def _call_alone(place: str) -> None:
    import holdfast as hf

    me = jax.process_index()
    processes = hf.options.MultiprocessingOptions(primary_host=None, active_processes={me})
    handler = hf.PyTreeCheckpointHandler(multiprocessing_options=processes)
    handler.save(place, {"n": me})
    handler.finalize(place)
    assert handler.restore(place) == {"n": me}
    said = outcome(handler.save, f"{place}-part", {"w": {"rows": _tree()["rows"]}})
    assert "'w.rows': the shard" in said["message"], said
    assert not os.path.exists(f"{place}-part")


def _on_the_last() -> jax.Array:
    """An array of which only the last process has anything."""
    devices = [d for d in jax.devices() if d.process_index == jax.process_count() - 1]
    mesh = jax.sharding.Mesh(np.array(devices, dtype=object), ("x",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    mine = [jax.device_put(np.ones(4, np.float32), d) for d in placed.addressable_devices]
    return jax.make_array_from_single_device_arrays((4,), placed, mine, dtype=np.float32)


def _key() -> Any:
    return jax.random.key(3)


class _Made:
    """A folder that a v1 handler is given."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return self.path

    async def await_creation(self) -> str:
        os.makedirs(self.path, exist_ok=True)
        return self.path


class Wrapping:
    """Leaves the arrays to a handler of holdfast's, and writes a file itself."""

    def __init__(self) -> None:
        import holdfast as hf

        self._inner = hf.StandardCheckpointHandler()

    def save(self, directory: Any, item: Any) -> None:
        self._inner.save(directory / "tree", item)
        (directory / f"own_{jax.process_index()}.txt").write_text("mine")

    def restore(self, directory: Any, item: Any = None) -> Any:
        assert (directory / f"own_{jax.process_index()}.txt").read_text() == "mine"
        return self._inner.restore(directory / "tree", item)

    def finalize(self, directory: Any) -> None:
        self._inner.finalize(directory / "tree")


class WrappingForOne(Wrapping):
    """Finalizes as programs do that were written for Orbax: on the primary process."""

    def finalize(self, directory: Any) -> None:
        if jax.process_index() == 0:
            super().finalize(directory)


class Parts(Wrapping):
    """Completes what it saves at once; what calls it then completes it again."""

    def save(self, directory: Any, item: Any) -> None:
        import holdfast as hf

        super().save(directory, item)
        multihost_utils.sync_global_devices("saved")
        self.finalize(directory)
        (directory / "more").mkdir()
        hf.JsonCheckpointHandler().save(directory / "more", {"n": 1})

    def finalize(self, directory: Any) -> None:
        import holdfast as hf

        super().finalize(directory)
        if (directory / "more").exists():
            hf.JsonCheckpointHandler().finalize(directory / "more")

    def restore(self, directory: Any, item: Any = None) -> Any:
        import holdfast as hf

        assert hf.JsonCheckpointHandler().restore(directory / "more") == {"n": 1}
        return super().restore(directory, item)


class Composed:
    """A v1 handler that saves each half of its item with one of holdfast's."""

    def __init__(self) -> None:
        import holdfast as hf

        self._inner = hf.handlers.PyTreeHandler()

    async def save(self, directory: Any, checkpointable: Any) -> Any:
        halves = [
            await self._inner.save(directory / "a", checkpointable.tree),
            await self._inner.save(directory / "b", {"step": checkpointable.tree["step"]}),
        ]

        async def write() -> None:
            for half in halves:
                await half

        return write()

    async def load(self, directory: Any, abstract_checkpointable: Any = None) -> Any:
        tree = abstract_checkpointable and abstract_checkpointable.tree
        half = await self._inner.load(directory / "a", tree)

        async def read() -> Pair:
            return Pair(await half)

        return read()

    async def metadata(self, directory: Any) -> Any:
        return await self._inner.metadata(directory / "a")

    def is_handleable(self, checkpointable: Any) -> bool:
        return isinstance(checkpointable, Pair)

    def is_abstract_handleable(self, abstract_checkpointable: Any) -> bool | None:
        return isinstance(abstract_checkpointable, Pair)


class Pair:
    """What `Composed` saves."""

    def __init__(self, tree: Any) -> None:
        self.tree = tree


def _wrap_alone(place: str) -> None:
    import holdfast as hf

    me = jax.process_index()
    options = hf.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    with hf.Checkpointer(Wrapping(), multiprocessing_options=options) as checkpointer:
        checkpointer.save(place, {"n": me})
        assert checkpointer.restore(place) == {"n": me}


def wrap_handlers(folder: str) -> Any:
    """Saves with handlers of users' that call holdfast's, inside a checkpoint and outside."""
    import holdfast as hf

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    me, a, tree = jax.process_index(), hf.args, _tree()

    def one(name: str, kind: Any, value: Any = tree) -> None:
        with hf.Checkpointer(kind()) as checkpointer:
            checkpointer.save(f"{folder}/{name}", value)
            _check(checkpointer.restore(f"{folder}/{name}", value))

    class Extended(hf.StandardCheckpointHandler):
        """As Orbax's own tests have it: complete when `save` returns."""

        def save(self, directory: Any, *args: Any, **kwargs: Any) -> None:
            super().save(directory, *args, **kwargs)
            if me == 0:
                self.finalize(directory)
            multihost_utils.sync_global_devices("finalized")

    def extended() -> None:
        place, handler = f"{folder}/extended", Extended()
        handler.save(place, args=a.StandardSave(tree))
        _check(handler.restore(place, args=a.StandardRestore(tree)))
        with hf.Checkpointer(handler) as checkpointer:
            checkpointer.save(f"{place}-whole", args=a.StandardSave(tree))
            _check(checkpointer.restore(f"{place}-whole", args=a.StandardRestore(tree)))

    items = a.Composite(**{f"i{n}": tree for n in range(3)})

    def several() -> None:
        """Which of them is called first may differ between the processes."""
        handler = hf.CompositeCheckpointHandler(**{f"i{n}": Wrapping() for n in range(3)})
        with hf.AsyncCheckpointer(handler) as checkpointer:
            checkpointer.save(f"{folder}/several", args=items)
            found = checkpointer.restore(f"{folder}/several", args=items)
        for n in range(3):
            _check(found[f"i{n}"])

    def outside() -> None:
        handler = hf.CompositeCheckpointHandler(**{f"i{n}": Wrapping() for n in range(3)})
        handler.save(f"{folder}/outside", args=items)
        handler.finalize(f"{folder}/outside")
        found = handler.restore(f"{folder}/outside", args=items)
        for n in range(3):
            _check(found[f"i{n}"])

    def named(value: Any = tree) -> None:
        registry = hf.handlers.local_registry()
        registry.add(Composed)
        options = hf.options.CheckpointablesOptions(registry=registry)
        with hf.Context(checkpointables=options):
            place = f"{folder}/named"
            hf.save_checkpointables(place, {"x": Pair(value), "y": Pair(value), "z": {"n": 1}})
            found = hf.load_checkpointables(place, {"x": Pair(value), "y": Pair(value)})
            _check(found["x"].tree)
            _check(found["y"].tree)

    done = {
        "all": outcome(one, "all", Wrapping),
        "one": outcome(one, "one", WrappingForOne),
        "parts": outcome(one, "parts", Parts),
        "extended": outcome(extended),
        "named": outcome(named),
        "several": outcome(several),
        "outside": outcome(outside),
        "part": outcome(_wrap_alone, f"{folder}/alone-{me}"),
    }
    return {
        "done": {name: said.get("message") for name, said in done.items()},
        "differs": outcome(one, "differs", Wrapping, {**tree, "step": me}),
        "left": keys_left(),
    }


def save_in_parts(folder: str) -> Any:
    """Saves arrays of one item in two parts, then exports the checkpoint and a tree."""
    import holdfast as hf

    me, place = jax.process_index(), f"{folder}/parts"
    tree = _tree()
    first = {name: tree.pop(name) for name in ("rows", "n")}

    def save(part: Any, **more: Any) -> None:
        items = {"state": part, **more}
        hf.partial.save_checkpointables(place, items)

    def load() -> None:
        found = hf.load_checkpointables(place, {"state": {**first, **tree}, "more": tree})
        _check(found["state"])
        for shard in found["more"]["same"].addressable_shards:
            assert np.asarray(shard.data).shape == (8, 3)

    def export(source: Any, name: str) -> Any:
        hf.export_safetensors(source, f"{folder}/{name}", non_tensors="metadata")
        return sorted(hf.load(f"{folder}/{name}"))

    done = {
        "first": outcome(save, first),
        "again": outcome(save, {"rows": first["rows"]}),
        "bad": outcome(save, {"x": object() if me else 1}),
        "differs": outcome(save, {"x": me}),
        "second": outcome(save, tree, more=tree),
        "finalize": outcome(hf.partial.finalize, place),
        "load": outcome(load),
        "twice": outcome(hf.partial.finalize, place),
        "nothing": outcome(hf.partial.finalize, f"{folder}/nothing"),
        "whole": outcome(export, {"same": tree["same"], "n": first["n"]}, "whole"),
        "scattered": outcome(export, first, "scattered"),
        "occupied": outcome(export, {"n": first["n"]}, "whole"),
    }
    hf.save(f"{folder}/saved", first)
    done["stored"] = outcome(export, f"{folder}/saved", "stored")
    if me == 0:
        done["one"] = outcome(export, f"{folder}/saved", "one")
    return {"done": done}
