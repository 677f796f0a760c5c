"""Every handler, alone and composed, through the checkpointers."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import struct_pb2

import holdfast as hf
from holdfast_checkpointer.handlers.registry import handler_class_for


def message():
    made = struct_pb2.Struct()
    made.update({"name": "model", "layers": 3})
    return made


def same(found, saved):
    if isinstance(saved, dict):
        return found.keys() == saved.keys() and all(same(found[k], saved[k]) for k in saved)
    if isinstance(saved, tuple | list):
        return type(found) is type(saved) and all(map(same, found, saved))
    if isinstance(saved, jax.Array) and jnp.issubdtype(saved.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data
        return found.dtype == saved.dtype and same(data(found), data(saved))
    if isinstance(saved, jax.Array | np.ndarray):
        equal = found.dtype == saved.dtype and np.array_equal(found, saved)
        return isinstance(found, type(saved)) and equal
    return type(found) is type(saved) and found == saved


a = hf.args
CASES = {
    "tree": (hf.PyTreeCheckpointHandler, a.PyTreeSave, a.PyTreeRestore, {"w": np.ones(3), "n": ""}),
    "standard": (hf.StandardCheckpointHandler, a.StandardSave, a.StandardRestore, {"n": 3}),
    "array": (hf.ArrayCheckpointHandler, a.ArraySave, a.ArrayRestore, np.arange(5)),
    "jax array": (hf.ArrayCheckpointHandler, a.ArraySave, a.ArrayRestore, jnp.arange(5.0)),
    "number": (hf.ArrayCheckpointHandler, a.ArraySave, a.ArrayRestore, 2.5),
    "json": (hf.JsonCheckpointHandler, a.JsonSave, a.JsonRestore, {"a": [1, None, "é"]}),
    "raw key": (
        hf.JaxRandomKeyCheckpointHandler, a.JaxRandomKeySave, a.JaxRandomKeyRestore,
        jax.random.PRNGKey(3),
    ),
    "typed key": (
        hf.JaxRandomKeyCheckpointHandler, a.JaxRandomKeySave, a.JaxRandomKeyRestore,
        jax.random.split(jax.random.key(3), 4),
    ),
    "rbg key": (
        hf.JaxRandomKeyCheckpointHandler, a.JaxRandomKeySave, a.JaxRandomKeyRestore,
        jax.random.key(3, impl="rbg"),
    ),
    "legacy state": (
        hf.NumpyRandomKeyCheckpointHandler, a.NumpyRandomKeySave, a.NumpyRandomKeyRestore,
        np.random.RandomState(5).get_state(),
    ),
    "generator state": (
        hf.NumpyRandomKeyCheckpointHandler, a.NumpyRandomKeySave, a.NumpyRandomKeyRestore,
        np.random.default_rng(5).bit_generator.state,
    ),
    "proto": (
        hf.ProtoCheckpointHandler, a.ProtoSave,
        lambda: a.ProtoRestore(struct_pb2.Struct), message(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_handler_gives_back_what_it_saved(case, place):
    handler, save, restore, value = CASES[case]
    with hf.Checkpointer(handler()) as checkpointer:
        checkpointer.save(f"{place}/one", args=save(value))
        assert same(checkpointer.restore(f"{place}/one", args=restore()), value)
    assert hf.verify(f"{place}/one").ok
    assert handler_class_for(handler.typestr()) is handler


def composite(only=lambda name: True):
    return a.Composite(
        **{
            name.replace(" ", "_"): save(value)
            for name, (_, save, _, value) in CASES.items()
            if only(name)
        }
    )


def test_all_items_of_a_composite_come_back_without_arguments(place):
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler())
    checkpointer.save(f"{place}/all", args=composite(lambda name: name != "proto"))
    found = hf.Checkpointer(hf.CompositeCheckpointHandler()).restore(f"{place}/all")
    for name, (_, _, _, value) in CASES.items():
        if name != "proto":
            assert same(found[name.replace(" ", "_")], value), name
    assert isinstance(found, a.Composite)
    assert hf.verify(f"{place}/all").ok


def test_some_items_of_a_composite_are_read_alone(place):
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler())
    checkpointer.save(f"{place}/all", args=composite())
    wanted = a.Composite(json=a.JsonRestore(), proto=a.ProtoRestore(struct_pb2.Struct))
    fresh = hf.Checkpointer(hf.CompositeCheckpointHandler())
    found = fresh.restore(f"{place}/all", args=wanted)
    assert set(found) == {"json", "proto"}
    assert found.proto == message()
    assert checkpointer.restore(f"{place}/all", args=a.Composite(json=None)).json == found.json


def test_what_needs_arguments_says_so_and_names_the_item(place):
    hf.Checkpointer(hf.CompositeCheckpointHandler()).save(f"{place}/all", args=composite())
    fresh = hf.Checkpointer(hf.CompositeCheckpointHandler())
    with pytest.raises(ValueError, match=r"item 'proto' was saved by .*needs arguments"):
        fresh.restore(f"{place}/all")
    with pytest.raises(ValueError, match="given None and has no handler yet"):
        fresh.restore(f"{place}/all", args=a.Composite(state=None))
    with pytest.raises(KeyError, match="no item 'other'; it has items: 'array'"):
        fresh.restore(f"{place}/all", args=a.Composite(other=a.JsonRestore()))


REFUSED = {
    "an array": (hf.ArrayCheckpointHandler, a.ArraySave({"w": 1}), TypeError, "got dict"),
    "a message": (hf.ProtoCheckpointHandler, a.ProtoSave("text"), TypeError, "got str"),
    "a key": (hf.JaxRandomKeyCheckpointHandler, a.JaxRandomKeySave(7), TypeError, "got int"),
    "a state": (hf.NumpyRandomKeyCheckpointHandler, a.NumpyRandomKeySave(7), TypeError, "got int"),
    "json": (hf.JsonCheckpointHandler, a.JsonSave({"x": object()}), ValueError, "x"),
    "nothing": (hf.CompositeCheckpointHandler, a.Composite(), ValueError, "at least one item"),
    "None": (hf.CompositeCheckpointHandler, a.Composite(x=None), ValueError, "'x'"),
    "reserved": (
        hf.CompositeCheckpointHandler, a.Composite(AUTO=a.JsonSave(1)), ValueError, "reserved",
    ),
    "a leaf": (
        hf.CompositeCheckpointHandler, a.Composite(x=a.StandardSave({"f": object()})),
        ValueError, "f",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(case, tmp_path):
    handler, args, kind, told = REFUSED[case]
    with pytest.raises(kind, match=told):
        hf.Checkpointer(handler()).save(tmp_path / "x", args=args)
    assert list(tmp_path.iterdir()) == []


def test_an_item_keeps_the_handler_of_its_first_use(place):
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler())
    checkpointer.save(f"{place}/1", args=a.Composite(x=a.JsonSave(1)))
    with pytest.raises(ValueError, match="takes JsonSave, got StandardSave"):
        checkpointer.save(f"{place}/2", args=a.Composite(x=a.StandardSave({"w": 1})))
    assert not hf.is_checkpoint(f"{place}/2")


def test_items_named_at_construction_are_the_only_ones(place):
    handler = hf.CompositeCheckpointHandler("state", config=hf.JsonCheckpointHandler("c.json"))
    checkpointer = hf.Checkpointer(handler)
    both = a.Composite(state=a.StandardSave({"w": 1}), config=a.JsonSave({"n": 2}))
    checkpointer.save(f"{place}/x", args=both)
    assert checkpointer.restore(f"{place}/x").config == {"n": 2}
    with pytest.raises(ValueError, match="item 'more' is not one of this handler's: config, state"):
        checkpointer.save(f"{place}/y", args=a.Composite(more=a.JsonSave(1)))
    with pytest.raises(ValueError, match="not both"):
        hf.CompositeCheckpointHandler("x", handler_registry=hf.CheckpointHandlerRegistry())
    with pytest.raises(TypeError, match="expected a CheckpointHandler, got int"):
        hf.CompositeCheckpointHandler(x=3)


def test_a_failed_item_leaves_nothing_of_the_others(tmp_path, monkeypatch):
    from holdfast_checkpointer.handlers import json

    async def fail(self, area):
        raise OSError("this disk has ended")

    monkeypatch.setattr(json.StagedJson, "write", fail)
    with pytest.raises(OSError, match="this disk has ended"):
        hf.Checkpointer(hf.CompositeCheckpointHandler()).save(
            tmp_path / "x", args=a.Composite(s=a.StandardSave({"w": np.ones(9)}), j=a.JsonSave(1))
        )
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_an_orbax_key_whose_implementation_is_not_recorded_can_be_named(place):
    key = jax.random.key(1, impl="rbg")
    parts = hf.CompositeCheckpointHandler()
    hf.Checkpointer(parts).save(
        f"{place}/k",
        args=a.Composite(
            jax_random_key=a.ArraySave(jax.random.key_data(key)),
            jax_random_key_metadata=a.JsonSave({"typed": True}),
        ),
    )
    checkpointer = hf.Checkpointer(hf.JaxRandomKeyCheckpointHandler())
    with pytest.raises(ValueError, match=r"JaxRandomKeyRestore\(impl="):
        checkpointer.restore(f"{place}/k")
    assert same(checkpointer.restore(f"{place}/k", impl="rbg"), key)


# --- arguments and registries ----------------------------------------------------------------


def test_a_composite_is_an_immutable_mapping_with_attributes():
    made = a.Composite(x=1, y=2)
    assert (made.x, made["y"], made.get("z"), dict(made)) == (1, 2, None, {"x": 1, "y": 2})
    assert dict(made & {"x"}) == {"x": 1}
    assert dict(made | a.Composite(y=3, z=4)) == {"x": 1, "y": 3, "z": 4}
    assert not hasattr(made, "z")
    assert pickle.loads(pickle.dumps(made)) == made
    with pytest.raises(KeyError, match="no item 'z'; there are: 'x', 'y'"):
        made["z"]
    with pytest.raises(ValueError, match="immutable"):
        made.x = 3
    with pytest.raises(ValueError, match="cannot start with '__'"):
        a.Composite(__x=1)


def test_arguments_of_ones_own_find_their_handler(place):
    class Upper(hf.JsonCheckpointHandler):
        recorded_as = "mine.Upper"

        def stage(self, args, context):
            return super().stage(a.JsonSave(args.item.upper()), context)

    @a.register_with_handler(Upper, for_save=True)
    class UpperSave(a.JsonSave):
        pass

    @a.register_with_handler(Upper, for_restore=True)
    class UpperRestore(a.JsonRestore):
        pass

    assert a.get_registered_handler_cls(UpperSave("x")) is Upper
    assert a.get_registered_args_cls(Upper) == (UpperSave, UpperRestore)
    assert a.has_registered_args(Upper)
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler())
    checkpointer.save(f"{place}/x", args=a.Composite(word=UpperSave("quiet")))
    assert checkpointer.restore(f"{place}/x").word == "QUIET"
    alone = hf.CompositeCheckpointHandler()
    assert (
        hf.Checkpointer(alone).restore(f"{place}/x", args=a.Composite(word=UpperRestore())).word
        == "QUIET"
    )


def test_what_cannot_be_registered_is_refused():
    with pytest.raises(ValueError, match="for_save=True"):
        a.register_with_handler(hf.JsonCheckpointHandler)
    with pytest.raises(TypeError, match="CheckpointHandler"):
        a.register_with_handler(int, for_save=True)
    with pytest.raises(TypeError, match="CheckpointArgs"):
        a.register_with_handler(hf.JsonCheckpointHandler, for_save=True)(int)
    with pytest.raises(TypeError, match="expected CheckpointArgs, got int"):
        a.get_registered_handler_cls(3)
    with pytest.raises(ValueError, match="no handler is registered for CheckpointArgs"):
        a.get_registered_handler_cls(a.CheckpointArgs())


def test_a_registry_answers_for_exactly_an_item_and_a_class_of_arguments():
    registry = hf.DefaultCheckpointHandlerRegistry()
    assert registry.get_all_entries() == {}
    mine = hf.JsonCheckpointHandler("mine")
    registry.add("config", a.JsonSave, mine)
    registry.add(None, a.JsonSave)
    assert registry.get("config", a.JsonSave(1)) is mine
    assert isinstance(registry.get(None, a.JsonSave), hf.JsonCheckpointHandler)
    assert registry.has("config", a.JsonSave(1))
    assert not registry.has("other", a.JsonSave)
    with pytest.raises(hf.errors.NoEntryError, match="item 'other' and JsonSave"):
        registry.get("other", a.JsonSave)
    with pytest.raises(hf.errors.NoEntryError, match="item 'config' and JsonRestore"):
        registry.get("config", a.JsonRestore)
    assert set(registry.get_all_entries()) == {("config", a.JsonSave), (None, a.JsonSave)}
    copied = hf.DefaultCheckpointHandlerRegistry(registry)
    copied.add("more", a.JsonSave, mine)
    assert copied.get("config", a.JsonSave) is mine
    assert not registry.has("more", a.JsonSave)


def test_what_a_registry_cannot_hold_is_refused():
    registry = hf.DefaultCheckpointHandlerRegistry()
    registry.add("config", a.JsonSave)
    with pytest.raises(hf.errors.AlreadyExistsError, match="'config' has a handler for JsonSave"):
        registry.add("config", a.JsonSave, hf.JsonCheckpointHandler)

    class Unregistered(a.CheckpointArgs):
        pass

    class Needy(hf.JsonCheckpointHandler):
        def __init__(self, needed):
            super().__init__(needed)

    with pytest.raises(ValueError, match="no handler is registered for Unregistered"):
        registry.add("x", Unregistered)
    with pytest.raises(ValueError, match="Needy cannot be made without arguments"):
        registry.add("x", a.JsonSave, Needy)
    with pytest.raises(TypeError, match=r"expected a CheckpointHandler, got int.*'save'"):
        registry.add("x", a.JsonSave, 3)
    with pytest.raises(ValueError, match="object has no registered arguments"):
        hf.create_default_handler_registry(x=object())


def test_a_registry_gives_a_composite_its_handlers(place):
    registry = hf.create_default_handler_registry(config=hf.JsonCheckpointHandler("c.json"))
    checkpointer = hf.Checkpointer(hf.CompositeCheckpointHandler(handler_registry=registry))
    checkpointer.save(f"{place}/x", args=a.Composite(config=a.JsonSave(1), w=a.ArraySave(2)))
    found = checkpointer.restore(f"{place}/x")
    assert (found.config, found.w) == (1, 2)


@pytest.mark.parametrize(
    ("recorded", "name"),
    [
        ("orbax.checkpoint.handlers.json_checkpoint_handler.JsonCheckpointHandler", "Json"),
        ("orbax.checkpoint.pytree_checkpoint_handler.PyTreeCheckpointHandler", "PyTree"),
        ("holdfast_checkpointer.handlers.array.ArrayCheckpointHandler", "Array"),
    ],
)
def test_old_and_own_module_paths_are_known(recorded, name):
    assert handler_class_for(recorded).__name__ == f"{name}CheckpointHandler"


def test_a_name_in_a_file_is_never_imported():
    assert handler_class_for("os.system") is None
    assert handler_class_for("evil.JsonCheckpointHandler") is None
    assert handler_class_for(None) is None


# --- the asynchronous checkpointers ----------------------------------------------------------


def test_a_save_in_the_background_is_waited_for_by_what_follows(place):
    committed = []
    with hf.AsyncCheckpointer(
        hf.StandardCheckpointHandler(),
        async_options=hf.options.AsyncOptions(
            post_finalization_callback=lambda: committed.append(hf.is_checkpoint(f"{place}/1"))
        ),
    ) as checkpointer:
        checkpointer.save(f"{place}/1", {"w": np.ones(3)})
        assert same(checkpointer.restore(f"{place}/1"), {"w": np.ones(3)})
        checkpointer.save(f"{place}/2", {"w": np.zeros(3)}, custom_metadata={"n": 2})
    assert hf.metadata(f"{place}/2").custom_metadata == {"n": 2}
    assert committed == [True, True]


def test_the_ready_made_checkpointers(place):
    with hf.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(f"{place}/tree", {"name": "x"})
        assert checkpointer.restore(f"{place}/tree") == {"name": "x"}
    with hf.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{place}/standard", {"w": np.ones(2, np.float32)})
        target = {"w": jax.ShapeDtypeStruct((2,), np.float32)}
        assert isinstance(checkpointer.restore(f"{place}/standard", target)["w"], jax.Array)


# --- several items by the free functions -----------------------------------------------------


def items():
    return {
        "model": {"w": jnp.arange(4.0)},
        "seed": 7,
        "text": message(),
        "config": a.JsonSave({"layers": [1, None]}),
        "key": jax.random.key(2, impl="rbg"),
    }


def test_items_are_saved_by_what_fits_them_and_loaded_as_saved(place):
    hf.save_checkpointables(f"{place}/x", items(), custom_metadata={"run": 1})
    found = hf.load_checkpointables(
        f"{place}/x",
        {"text": struct_pb2.Struct, "model": None, "seed": None, "config": None, "key": None},
    )
    assert set(found) == set(items())
    assert same(found["model"], items()["model"])
    assert (found["seed"], found["text"], found["config"]) == (7, message(), {"layers": [1, None]})
    assert same(found["key"], items()["key"])
    assert hf.metadata(f"{place}/x").custom_metadata == {"run": 1}
    assert hf.verify(f"{place}/x").ok


def test_an_item_of_a_composite_may_be_called_metrics_as_in_orbax(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        numbers = a.Composite(metrics=a.JsonSave({"loss": 1.0}), x=a.JsonSave(5))
        checkpointer.save(f"{place}/json", numbers)
        assert checkpointer.restore(f"{place}/json").metrics == {"loss": 1.0}
        assert checkpointer.metadata(f"{place}/json").metrics == {"loss": 1.0}
        only = a.Composite(metrics=a.JsonRestore())
        assert checkpointer.restore(f"{place}/json", only) == {"metrics": {"loss": 1.0}}
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(f"{place}/tree", a.Composite(metrics=a.StandardSave({"w": np.ones(2)})))
        about = checkpointer.metadata(f"{place}/tree")
        assert about.metrics == {}
        assert about.item_metadata["metrics"]["w"].shape == (2,)


def test_items_load_into_targets(place):
    hf.save_checkpointables(f"{place}/x", {"m": {"w": np.ones(4, np.float32)}, "n": {"v": 1}})
    target = {"w": jax.ShapeDtypeStruct((4,), np.float32)}
    found = hf.load_checkpointables(f"{place}/x", {"m": target})
    assert list(found) == ["m"]
    assert isinstance(found["m"]["w"], jax.Array)
    about = hf.checkpointables_metadata(f"{place}/x")
    assert about.metadata["m"]["w"].shape == (4,)
    assert same(hf.load_checkpointables(f"{place}/x", about)["n"], {"v": 1})
    assert same(hf.load_checkpointables(f"{place}/x", {})["n"], {"v": 1})
    with pytest.raises(hf.errors.TreeMismatchError):
        hf.load_checkpointables(f"{place}/x", {"m": {"other": ...}})
    with pytest.raises(KeyError, match="no item 'z'; it has items: 'm', 'n'"):
        hf.load_checkpointables(f"{place}/x", {"z": None})


def test_items_are_saved_and_loaded_in_the_background(place):
    response = hf.save_checkpointables_async(f"{place}/x", {"a": np.arange(3)})
    response.result()
    assert same(hf.load_checkpointables_async(f"{place}/x").result(), {"a": np.arange(3)})


@pytest.mark.parametrize(
    ("given", "kind", "told"),
    [
        ({}, ValueError, "empty"),
        ([1], ValueError, "got list"),
        ({"": 1}, ValueError, "cannot name an item"),
        ({3: 1}, ValueError, "is text, got 3"),
        ({"metrics": 1}, ValueError, "reserved"),
        ({"AUTO": 1}, ValueError, "reserved"),
        ({"a/b": 1}, ValueError, "cannot name an item"),
        ({"x": None}, ValueError, "item 'x' is None"),
        ({"ok": 1, "x": {"f": object()}}, ValueError, "f"),
    ],
)
def test_items_that_cannot_be_saved_are_refused_before_anything_is_written(
    given, kind, told, tmp_path
):
    with pytest.raises(kind, match=told):
        hf.save_checkpointables(tmp_path / "x", given)
    assert list(tmp_path.iterdir()) == []


def test_items_replace_others_only_when_told(place):
    hf.save_checkpointables(f"{place}/x", {"a": 1})
    with pytest.raises(FileExistsError):
        hf.save_checkpointables(f"{place}/x", {"b": 2})
    hf.save_checkpointables(f"{place}/x", {"b": 2}, overwrite=True)
    assert hf.load_checkpointables(f"{place}/x") == {"b": 2}
