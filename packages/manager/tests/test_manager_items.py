"""CheckpointManager: the ways to say what is stored, and items without a name."""

import json
import uuid

import numpy as np
import pytest

from holdfast_checkpointer import (
    AsyncCheckpointer,
    Checkpointer,
    DefaultCheckpointHandlerRegistry,
    JsonCheckpointHandler,
    PyTreeCheckpointer,
    PyTreeCheckpointHandler,
    StandardCheckpointHandler,
)
from holdfast_checkpointer.args import (
    CheckpointArgs,
    Composite,
    JsonRestore,
    JsonSave,
    PyTreeRestore,
    PyTreeSave,
    StandardRestore,
    StandardSave,
)
from holdfast_checkpointer.handlers.registry import register_with_handler
from holdfast_manager.checkpoint_manager import (
    CheckpointManager,
    CheckpointManagerOptions,
    determine_default_item_mode_from_args,
)

TREE = {"w": np.arange(3.0)}
BOTH = Composite(state=StandardSave(TREE), config=JsonSave({"layers": 3}))


@pytest.fixture
def place():
    """A run in memory: what a store has to do with it is tested elsewhere."""
    return f"memory://run-{uuid.uuid4().hex}/job"


def same(found, expected=TREE):
    np.testing.assert_array_equal(found["w"], expected["w"])
    return True


class OwnHandler:
    """Written against the protocol of Orbax's first years: no arguments of its own."""

    def save(self, directory, item, *, note=""):
        (directory / "own.json").write_text(json.dumps([item, note]))

    def restore(self, directory, item=None):
        return json.loads((directory / "own.json").read_text())


REGISTRY = DefaultCheckpointHandlerRegistry()
for kind in (JsonSave, JsonRestore):
    REGISTRY.add("config", kind, JsonCheckpointHandler("config.json"))

WAYS = {
    "nothing": {},
    "names": {"item_names": ("state", "config")},
    "handlers": {
        "item_handlers": {
            "state": StandardCheckpointHandler(),
            "config": JsonCheckpointHandler(),
        }
    },
    "names and handlers": {
        "item_names": ["state"],
        "item_handlers": {"config": JsonCheckpointHandler()},
    },
    "registry": {"handler_registry": REGISTRY},
    "checkpointers": {
        "checkpointers": {
            "state": AsyncCheckpointer(StandardCheckpointHandler()),
            "config": Checkpointer(JsonCheckpointHandler()),
        }
    },
}


@pytest.mark.parametrize("way", WAYS)
def test_items_with_names_are_saved_and_restored_however_they_were_said(place, way):
    options = CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    with CheckpointManager(place, options=options, **WAYS[way]) as manager:
        assert manager.save(0, args=BOTH, metrics={"loss": 1.0})
        with pytest.raises(ValueError, match="items with names"):
            manager.save(1, args=StandardSave(TREE))
        with pytest.raises(ValueError, match="items with names"):
            manager.restore(0, args=StandardRestore())
        found = manager.restore(0)
        assert same(found.state)
        assert found["config"] == {"layers": 3}
        assert found.metrics == {"loss": 1.0}
        assert set(manager.restore(0, args=Composite(config=None))) == {"config"}
        target = {"w": np.zeros(3)}
        assert same(manager.restore(0, args=Composite(state=StandardRestore(target))).state)
        assert set(manager.item_metadata(0)) == {"state", "config", "metrics"}
        with pytest.raises(KeyError, match="'config', 'metrics', 'state'"):
            manager.restore(0, args=Composite(other=None))
    with CheckpointManager(place, options=options, **WAYS[way]) as manager:
        assert same(manager.restore(0).state)  # nothing was saved by this one
        assert manager.best_step() == 0


UNNAMED = {
    "nothing": {},
    "handler": {"item_handlers": StandardCheckpointHandler()},
    "checkpointer": {"checkpointers": AsyncCheckpointer(StandardCheckpointHandler())},
    "registry": {"handler_registry": REGISTRY},
}


@pytest.mark.parametrize("way", UNNAMED)
def test_one_item_without_a_name_is_saved_and_restored(place, way):
    with CheckpointManager(place, **UNNAMED[way]) as manager:
        assert manager.save(0, args=StandardSave(TREE), metrics={"loss": 1.0})
        for call in (
            lambda: manager.save(1, args=BOTH),
            lambda: manager.restore(0, args=Composite(state=None)),
        ):
            with pytest.raises(ValueError, match="without a name"):
                call()
        assert same(manager.restore(0))
        assert same(manager.restore(0, args=StandardRestore({"w": np.zeros(3)})))
        assert manager.item_metadata(0)["w"].shape == (3,)
        assert set(manager.metadata(0).item_handlers) == {"default", "metrics"}
    with CheckpointManager(place, **UNNAMED[way]) as manager:
        assert same(manager.restore(0))


def test_the_first_step_that_is_looked_into_decides(place):
    with CheckpointManager(f"{place}/one") as one, CheckpointManager(f"{place}/several") as several:
        one.save(0, args=JsonSave([1]))
        several.save(0, args=BOTH)
    for look in ("restore", "metadata", "item_metadata"):
        manager = CheckpointManager(f"{place}/one")
        getattr(manager, look)(0)
        with pytest.raises(ValueError, match="without a name"):
            manager.save(1, args=BOTH)
        assert manager.restore(0, args=JsonRestore()) == [1]
        manager = CheckpointManager(f"{place}/several")
        getattr(manager, look)(0)
        with pytest.raises(ValueError, match="items with names"):
            manager.save(1, args=JsonSave([1]))


def test_what_was_refused_decides_nothing(place):
    with CheckpointManager(place) as manager:
        with pytest.raises(ValueError):
            manager.save(0, {"state": TREE})
        with pytest.raises(ValueError):
            manager.save(-1, args=JsonSave([1]))
        assert manager.save(0, args=BOTH)


def test_other_items_from_step_to_step(place):
    with CheckpointManager(place) as manager:
        manager.save(0, args=BOTH)
        manager.save(1, args=Composite(state=StandardSave(TREE)))
        manager.save(2, args=BOTH | {"extra": JsonSave(5)})
        assert set(manager.restore(0)) == {"state", "config"}
        assert set(manager.restore(1)) == {"state"}
        assert manager.restore(2).extra == 5


@pytest.mark.parametrize(
    "ways",
    [
        {"checkpointers": Checkpointer(JsonCheckpointHandler()), "item_names": ("a",)},
        {"checkpointers": Checkpointer(JsonCheckpointHandler()), "item_handlers": {}},
        {"checkpointers": Checkpointer(JsonCheckpointHandler()), "handler_registry": REGISTRY},
        {"item_names": ("a",), "item_handlers": JsonCheckpointHandler()},
        {"item_names": ("a",), "handler_registry": REGISTRY},
        {"item_handlers": JsonCheckpointHandler(), "handler_registry": REGISTRY},
    ],
)
def test_two_ways_at_once_are_refused(place, ways):
    with pytest.raises(ValueError, match=f"{' and '.join(ways)} exclude each other"):
        CheckpointManager(place, **ways)


@pytest.mark.parametrize(
    ("way", "kind", "told"),
    [
        ({"checkpointers": 5}, ValueError, "got builtins.int"),
        ({"checkpointers": {"a": JsonCheckpointHandler()}}, ValueError, "for item 'a'"),
        ({"item_names": "state"}, ValueError, "a list of names"),
        ({"item_names": ("a/b",)}, ValueError, "cannot name an item"),
        ({"item_names": ("AUTO",)}, ValueError, "reserved"),
        ({"item_handlers": {"a": 5}}, TypeError, "item 'a'"),
        ({"logger": print}, NotImplementedError, "standard library"),
        ({"options": {"max_to_keep": 2}}, TypeError, "builtins.dict"),
    ],
)
def test_what_cannot_say_what_is_stored_is_refused(place, way, kind, told):
    with pytest.raises(kind, match=told):
        CheckpointManager(place, **way)


def test_any_names_are_taken_if_none_were_said(place):
    for index, way in enumerate(({"item_names": ()}, {"item_handlers": {}}, {"checkpointers": {}})):
        with CheckpointManager(f"{place}/{index}", **way) as manager:
            with pytest.raises(ValueError, match="items with names"):
                manager.save(0, args=JsonSave(1))
            manager.save(0, args=Composite(handler_registry=JsonSave(1)))
            assert manager.restore(0) == {"handler_registry": 1}
    odd = ("composite_options", "handler_registry")
    with CheckpointManager(f"{place}/odd", item_names=odd) as manager:
        manager.save(0, args=Composite(composite_options=JsonSave(1)))
        assert manager.restore(0) == {"composite_options": 1}


@pytest.mark.parametrize("args", [None, 5, TREE])
def test_no_arguments_are_refused(place, args):
    with CheckpointManager(place) as manager, pytest.raises(ValueError, match="args"):
        manager.save(0, args=args)


def test_arguments_in_the_place_of_items_are_refused(place):
    with CheckpointManager(place, item_names=("state",)) as manager:
        for given in (StandardSave(TREE), Composite(state=StandardSave(TREE))):
            with pytest.raises(ValueError, match="args="):
                manager.save(0, given)
        manager.save(0, args=Composite(state=StandardSave(TREE)))
        with pytest.raises(ValueError, match="args="):
            manager.restore(0, Composite(state=StandardRestore()))
        with pytest.raises(ValueError, match="not both"):
            manager.restore(0, {"state": TREE}, args=Composite(state=StandardRestore()))


def test_arguments_of_another_handler_and_items_that_were_not_named_are_refused(place):
    manager = CheckpointManager(place, item_handlers=JsonCheckpointHandler())
    with pytest.raises(ValueError, match="JsonSave, got StandardSave"):
        manager.save(0, args=StandardSave(TREE))
    with CheckpointManager(place, item_names=("a",)) as manager:
        with pytest.raises(ValueError, match="'b' is not one"):
            manager.save(0, args=Composite(b=JsonSave(1)))
        assert manager.save(0, args=Composite(a=JsonSave(1)))


@pytest.mark.parametrize("kind", [Checkpointer, AsyncCheckpointer])
def test_items_are_taken_as_the_older_interface_has_them(place, kind):
    handlers = {"params": kind(PyTreeCheckpointHandler()), "own": Checkpointer(OwnHandler())}
    with CheckpointManager(place, handlers) as manager:
        assert manager.save(0, {"params": TREE, "own": 7}, {"own": {"note": "x"}})
        found = manager.restore(0)
        assert same(found["params"])
        assert found["own"] == [7, "x"]
        found = manager.restore(0, {"params": {"w": np.zeros(3)}, "own": None})
        assert same(found.params)
        assert set(manager.restore(0, restore_kwargs={"params": {"restore_args": None}})) == {
            "params"
        }
        with pytest.raises(ValueError, match="'other' has no handler"):
            manager.save(1, {"other": 1})
        with pytest.raises(ValueError, match="a dict by item"):
            manager.save(1, TREE["w"])


def test_one_item_is_taken_as_the_older_interface_has_it(place):
    with CheckpointManager(place, PyTreeCheckpointer()) as manager:
        assert manager.save(0, TREE)
        assert manager.all_steps() == [0]  # a Checkpointer's saves are committed on return
        assert same(manager.restore(0))
        assert same(manager.restore(0, {"w": np.zeros(3)}, {"restore_args": None}))
    with CheckpointManager(place, AsyncCheckpointer(OwnHandler())) as manager:
        manager.save(1, 5, {"note": "y"})
        assert manager.restore(1) == [5, "y"]
        assert manager.metadata(1).item_handlers["default"].endswith("OwnHandler")


def test_deadlines_of_checkpointers_count_unless_the_options_say_another(place):
    both = {
        "a": AsyncCheckpointer(JsonCheckpointHandler(), timeout_secs=700),
        "b": AsyncCheckpointer(JsonCheckpointHandler(), timeout_secs=800),
    }
    assert CheckpointManager(place, both)._context.asynchronous.timeout_secs == 800
    from holdfast_checkpointer.options import AsyncOptions

    options = CheckpointManagerOptions(async_options=AsyncOptions(timeout_secs=500))
    assert CheckpointManager(place, both, options)._context.asynchronous.timeout_secs == 500


def test_a_registry_chooses_handlers_by_arguments_and_stays_as_it_was(place):
    class TheirSave(StandardSave):
        pass

    class TheirRestore(StandardRestore):
        pass

    registry = DefaultCheckpointHandlerRegistry()
    handler = StandardCheckpointHandler()
    registry.add(None, TheirSave, handler)
    registry.add(None, TheirRestore, handler)
    before = registry.get_all_entries()
    with CheckpointManager(place, handler_registry=registry) as manager:
        manager.save(10, args=TheirSave(TREE))
        assert same(manager.restore(10, args=TheirRestore({"w": np.zeros(3)})))
        assert same(manager.restore(10))
    with CheckpointManager(place, handler_registry=registry) as manager:
        assert same(manager.restore(10, args=TheirRestore({"w": np.zeros(3)})))
    assert registry.get_all_entries() == before


@pytest.mark.parametrize("local", [True, False])
def test_a_handler_of_a_user_s_is_found_by_its_arguments(local, place, tmp_path):
    class Plain:
        def save(self, directory, args):
            (directory / "x").write_text(str(args.value))

        def restore(self, directory, args=None):
            return int((directory / "x").read_text())

    @register_with_handler(Plain, for_save=True)
    class PlainSave(CheckpointArgs):
        def __init__(self, value):
            self.value = value

    @register_with_handler(Plain, for_restore=True)
    class PlainRestore(CheckpointArgs):
        pass

    with CheckpointManager(tmp_path if local else place) as manager:
        manager.save(0, args=Composite(plain=PlainSave(4), tree=PyTreeSave(TREE)))
        found = manager.restore(0, args=Composite(plain=PlainRestore(), tree=PyTreeRestore()))
        assert found.plain == 4
        assert same(found.tree)


def test_an_item_may_be_called_metrics_if_no_metrics_are_given(place):
    mine = Composite(state=StandardSave(TREE), metrics=JsonSave({"loss": 2.0}))
    with CheckpointManager(place) as manager:
        with pytest.raises(ValueError, match="choose one"):
            manager.save(0, args=mine, metrics={"loss": 1.0})
        manager.save(0, args=mine)
        assert manager.restore(0, args=Composite(metrics=JsonRestore())).metrics == {"loss": 2.0}
        assert manager.metrics(0) == {"loss": 2.0}
        assert manager.metadata(0).metrics == {"loss": 2.0}


@pytest.mark.parametrize("metrics", [[1], {"loss": object()}, {1: 2.0}])
def test_metrics_that_are_no_json_object_are_refused_before_anything_is_written(place, metrics):
    with CheckpointManager(place) as manager:
        with pytest.raises(ValueError, match="metrics"):
            manager.save(0, args=JsonSave(1), metrics=metrics)
        with pytest.raises(ValueError, match="custom_metadata"):
            manager.save(0, args=JsonSave(1), custom_metadata={"a": object()})
        assert manager.all_steps(read=True) == []
        assert manager.save(0, args=JsonSave(1), metrics={"loss": np.float64(1)})


def test_arguments_say_whether_the_item_has_a_name():
    assert determine_default_item_mode_from_args(JsonSave(1))
    assert not determine_default_item_mode_from_args(BOTH)
