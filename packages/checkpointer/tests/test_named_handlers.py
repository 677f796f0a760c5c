"""Handlers of users for named items, and objects that save themselves."""

import asyncio
import concurrent.futures
import dataclasses
import json
import logging
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from google.protobuf import struct_pb2

import holdfast as hf
from holdfast_checkpointer import checkpointables

h, o = hf.handlers, hf.options


@dataclasses.dataclass
class Point:
    x: int
    y: int


class PointHandler:
    """As Orbax's documentation has users write one."""

    seen = []

    async def save(self, directory, checkpointable):
        taken = dataclasses.asdict(checkpointable)
        self.seen.append(threading.current_thread())

        async def write():
            folder = await directory.await_creation()
            assert folder == directory.path
            assert (directory / "x.json").path == folder / "x.json"
            await asyncio.sleep(0)
            (folder / "x.json").write_text(json.dumps(taken["x"]))
            (folder / "sub").mkdir()
            (folder / "sub" / "y.json").write_text(json.dumps(taken["y"]))

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        async def read():
            x = json.loads((directory / "x.json").read_text())
            y = json.loads((directory / "sub" / "y.json").read_text())
            return (abstract_checkpointable or Point)(x, y)

        return read()

    async def metadata(self, directory):
        return Point

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Point)

    def is_abstract_handleable(self, abstract_checkpointable):
        return abstract_checkpointable is Point


class OtherPointHandler(PointHandler):
    """The one that replaced `PointHandler` in a later version of somebody's code."""


class Counter:
    """An object that saves itself."""

    def __init__(self, value=0):
        self.value = value

    async def save(self, directory):
        taken = self.value

        async def write():
            folder = await directory.await_creation()
            (folder / "process_0-of-1.txt").write_text(str(taken))

        return write()

    async def load(self, directory):
        async def read():
            self.value = int((directory / "process_0-of-1.txt").read_text())

        return read()


def using(*handlers, **named):
    """A context with handlers for any item and for items of a name."""
    registry = h.local_registry()
    for handler in handlers:
        registry.add(handler)
    for name, handler in named.items():
        registry.add(handler, checkpointable_name=name)
    return hf.Context(checkpointables=o.CheckpointablesOptions(registry=registry))


def test_a_handler_of_a_user_s_saves_and_loads_its_type(place):
    with using(PointHandler):
        hf.save_checkpointables(place, {"point": Point(1, 2), "state": {"w": np.arange(3)}})
        found = hf.load_checkpointables(place)
        assert found["point"] == Point(1, 2)
        np.testing.assert_array_equal(found["state"]["w"], np.arange(3))
        assert hf.load_checkpointables(place, {"point": Point}) == {"point": Point(1, 2)}
        assert hf.checkpointables_metadata(place).metadata["point"] is Point
    assert hf.verify(place).ok


def test_the_body_of_save_runs_in_the_caller_s_thread_and_may_be_followed_by_changes(place):
    point = Point(1, 2)
    PointHandler.seen.clear()
    with using(PointHandler):
        response = hf.save_checkpointables_async(place, {"point": point})
        point.x = 100
        assert PointHandler.seen == [threading.current_thread()]
        response.result()
        assert hf.load_checkpointables_async(place).result() == {"point": Point(1, 2)}


def test_it_works_inside_a_running_event_loop(place):
    async def main():
        with using(PointHandler):
            await hf.save_checkpointables_async(place, {"point": Point(1, 2), "n": Counter(5)})
            counter = Counter()
            found = await hf.load_checkpointables_async(place, {"point": None, "n": counter})
        return found, counter

    found, counter = asyncio.run(main())
    assert found["point"] == Point(1, 2)
    assert found["n"] is counter
    assert counter.value == 5


def test_without_its_handler_an_item_is_an_error_that_names_it(place):
    with using(PointHandler):
        hf.save_checkpointables(place, {"point": Point(1, 2), "state": {"n": 1}})
    for kind in (KeyError, ValueError, hf.errors.NoEntryError, hf.errors.NoHandlerError):
        with pytest.raises(kind, match=r"'point' was saved by .*PointHandler, which is not known"):
            hf.load_checkpointables(place)
    assert hf.load_checkpointables(place, {"state": None}) == {"state": {"n": 1}}
    assert hf.checkpointables_metadata(place).metadata["point"] is None
    with pytest.raises(KeyError, match="no handler takes item 'p' of type Point"):
        hf.save_checkpointables(place + "2", {"p": Point(1, 2)})
    with pytest.raises(hf.errors.UnsupportedLeafError, match=r"(?s)As a PyTree:.*Point"):
        hf.save_checkpointables(place + "2", {"p": {"a": Point(1, 2)}})
    assert not hf.is_checkpoint(place + "2")


def test_a_class_that_was_replaced_is_found_by_its_old_name(place):
    with using(PointHandler):
        hf.save_checkpointables(place, {"point": Point(1, 2)})
    old = f"{PointHandler.__module__}.{PointHandler.__qualname__}"
    registry = h.local_registry().add(OtherPointHandler, secondary_typestrs=[old])
    with hf.Context(checkpointables=o.CheckpointablesOptions(registry=registry)):
        assert hf.load_checkpointables(place) == {"point": Point(1, 2)}
    assert registry.get_secondary_typestrs(OtherPointHandler) == [old]


def test_of_two_handlers_the_last_one_added_takes_the_item(place):
    class Second(PointHandler):
        pass

    with using(PointHandler, Second):
        hf.save_checkpointables(place, {"point": Point(1, 2)})
        assert "Second" in str(recorded(place))
    with using(Second, PointHandler, mine=Second):
        hf.save_checkpointables(place + "2", {"point": Point(1, 2), "mine": Point(3, 4)})
        assert recorded(place + "2")["point"].endswith("PointHandler")
        assert recorded(place + "2")["mine"].endswith("Second")  # the name goes first


def recorded(place):
    from holdfast_checkpointer.engine.layout import read_checkpoint
    from holdfast_storage import get_loop, locate

    async def body(stored):
        return stored.step.item_handlers

    return get_loop().run(read_checkpoint(*locate(place), body))


def test_a_handler_for_a_name_takes_the_state_of_the_plain_functions(place):
    with using(model=PointHandler):
        hf.save(place, Point(1, 2), checkpointable_name="model")
        assert hf.load_checkpointables(place) == {"model": Point(1, 2)}
        assert hf.load(place, checkpointable_name="model") == Point(1, 2)
        assert hf.load(place, Point, checkpointable_name="model") == Point(1, 2)
    with using(PointHandler), pytest.raises(ValueError, match="Point is no leaf"):
        hf.save(place + "2", Point(1, 2))  # without one, a PyTree it is


def test_a_dict_that_json_could_express_is_a_pytree_unless_its_name_has_a_handler(place):
    config = {"layers": 3, "name": "x", "rate": 0.5}
    with using(config=h.JsonHandler):
        hf.save_checkpointables(place, {"config": config, "other": config})
        assert recorded(place)["config"].endswith("JsonCheckpointHandler")
        assert recorded(place)["other"].endswith("PyTreeCheckpointHandler")
        assert hf.load_checkpointables(place) == {"config": config, "other": config}
    # Whoever loads without that registry follows what was recorded.
    assert hf.load_checkpointables(place) == {"config": config, "other": config}
    assert hf.load_checkpointables(place, {"config": {"any": 1}}) == {"config": config}
    with using(config=h.JsonHandler), pytest.raises(ValueError, match="config"):
        hf.save_checkpointables(place + "2", {"config": {"w": np.ones(2)}})


def test_a_message_is_saved_and_its_class_loads_it(place):
    message = struct_pb2.Struct()
    message.update({"layers": 3})
    hf.save_checkpointables(place, {"proto": message, "state": {"n": 1}})
    assert hf.load_checkpointables(place, {"proto": struct_pb2.Struct}) == {"proto": message}
    with pytest.raises(ValueError, match="message's class"):
        hf.load_checkpointables(place)
    with pytest.raises(ValueError, match="cannot load an item into"):
        hf.load(place, struct_pb2.Struct)


def test_an_object_that_saves_itself_is_brought_into_its_state(place, caplog):
    counter = Counter(7)
    response = hf.save_checkpointables_async(place, {"it": counter, "state": {"n": 1}})
    counter.value = 100
    response.result()
    assert isinstance(counter, hf.StatefulCheckpointable)
    fresh = Counter()
    assert hf.load_checkpointables(place, {"it": fresh})["it"] is fresh
    assert fresh.value == 7
    with caplog.at_level(logging.WARNING):
        assert hf.load_checkpointables(place) == {"state": {"n": 1}}
    assert "item 'it'" in caplog.text
    assert "pass that object by its name" in caplog.text
    with pytest.raises(ValueError, match="pass the object that is to"):
        hf.load_checkpointables(place, {"it": None})
    assert hf.checkpointables_metadata(place).metadata["it"] is None
    assert hf.verify(place).ok


def test_damage_of_a_user_s_file_is_noticed_before_the_handler_reads_it(tmp_path):
    hf.save_checkpointables(tmp_path / "c", {"it": Counter(7)})
    (tmp_path / "c" / "it" / "process_0-of-1.txt").write_text("8")
    fresh = Counter()
    with pytest.raises(hf.errors.DamagedCheckpointError):
        hf.load_checkpointables(tmp_path / "c", {"it": fresh})
    assert fresh.value == 0
    assert not hf.verify(tmp_path / "c").ok


class Failing(PointHandler):
    async def save(self, directory, checkpointable):
        if checkpointable.x == 0:
            raise ZeroDivisionError("at once")

        async def write():
            folder = await directory.await_creation()
            (folder / "half").write_text("half")
            raise ZeroDivisionError("later")

        return write()

    async def load(self, directory, abstract_checkpointable=None):
        raise ZeroDivisionError("reading")

    async def metadata(self, directory):
        raise ZeroDivisionError("describing")


@pytest.mark.parametrize("x", [0, 1])
def test_a_save_whose_handler_fails_leaves_nothing_and_says_what_failed(tmp_path, x):
    hf.save(tmp_path / "c", {"old": 1})
    with using(Failing), pytest.raises(ZeroDivisionError):
        hf.save_checkpointables(
            tmp_path / "c", {"p": Point(x, 0), "state": {"n": 1}}, overwrite=True
        )
    assert hf.load(tmp_path / "c") == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_what_a_handler_raises_while_loading_keeps_its_type(place, caplog):
    with using(PointHandler):
        hf.save_checkpointables(place, {"p": Point(1, 2)})
    with using(p=Failing):
        with pytest.raises(ZeroDivisionError, match="reading"):
            hf.load_checkpointables(place)
        with caplog.at_level(logging.WARNING):
            assert hf.checkpointables_metadata(place).metadata == {"p": None}
    assert "gave no metadata: ZeroDivisionError('describing')" in caplog.text


class Wrapping(PointHandler):
    """Leaves the arrays of its type to a handler of holdfast's."""

    async def save(self, directory, checkpointable):
        return await h.PyTreeHandler().save(directory / "tree", {"x": checkpointable.x})

    async def load(self, directory, abstract_checkpointable=None):
        tree = await h.PyTreeHandler().load(directory / "tree")

        async def read():
            return Point((await tree)["x"], 0)

        return read()

    async def metadata(self, directory):
        return await h.PyTreeHandler().metadata(directory / "tree")


def test_a_handler_may_leave_its_arrays_to_one_of_ours(place):
    with using(Wrapping):
        hf.save_checkpointables(place, {"p": Point(jnp.arange(5.0), 0)})
        found = hf.load_checkpointables(place)["p"]
        assert isinstance(found.x, jax.Array)
        np.testing.assert_array_equal(found.x, np.arange(5.0))
        assert hf.checkpointables_metadata(place).metadata["p"]["x"].shape == (5,)


def test_a_handler_called_directly_uses_the_context_it_was_made_with(tmp_path):
    async def run(handler, target):
        await (await handler.save(Created(tmp_path), {"a": 1, "b": 2}))
        return await (await handler.load(tmp_path, target))

    partial = hf.Context(pytree=o.PyTreeOptions(loading=o.PyTreeOptions.Loading(partial_load=True)))
    assert asyncio.run(run(h.PyTreeHandler(context=partial), {"a": 0})) == {"a": 1}
    with pytest.raises(ValueError, match="'b'"):
        asyncio.run(run(h.PyTreeHandler(), {"a": 0}))


class Created:
    """A folder that is there already."""

    def __init__(self, path):
        self.path = path

    async def await_creation(self):
        return self.path


class NoAwaitable(PointHandler):
    async def save(self, directory, checkpointable):
        return None


class NeedsArguments(PointHandler):
    def __init__(self, path):
        self.path = path


def test_handlers_that_break_the_protocol_are_told_what_is_wrong(tmp_path):
    with using(NoAwaitable), pytest.raises(TypeError, match="NoAwaitable must return an awaitable"):
        hf.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})
    with using(NeedsArguments), pytest.raises(ValueError, match="cannot be made without arguments"):
        hf.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})
    with using(p=NeedsArguments), pytest.raises(ValueError, match="of item 'p' cannot be made"):
        hf.save_checkpointables(tmp_path / "c", {"p": Point(1, 2)})
    assert list(tmp_path.iterdir()) == []


class Endless(PointHandler):
    ended = []

    async def save(self, directory, checkpointable):
        async def write():
            (await directory.await_creation() / "half").write_text("half")
            try:
                await asyncio.sleep(3600)
            finally:
                self.ended.append(1)

        return write()


@pytest.mark.parametrize("how", ["deadline", "cancel"])
def test_a_handler_that_never_ends_is_stopped_with_its_save(tmp_path, how):
    Endless.ended.clear()
    context = using(Endless)
    if how == "deadline":
        context = context.replace(asynchronous=o.AsyncOptions(timeout_secs=0.5))
    response = hf.save_checkpointables_async(
        tmp_path / "c", {"p": Point(1, 2), "q": Point(3, 4)}, context=context
    )
    if how == "cancel":
        assert response.cancel()
    expected = TimeoutError if how == "deadline" else concurrent.futures.CancelledError
    with pytest.raises(expected):
        response.result(timeout=60)
    assert list(tmp_path.iterdir()) == []
    assert how == "cancel" or Endless.ended == [1, 1]


def test_a_load_in_the_background_is_in_the_background(place, monkeypatch):
    hf.save_checkpointables(place, {"it": Counter(7), "state": {"n": 1}})
    opened = threading.Event()
    read = checkpointables.read_by_layout

    async def held(*args):
        await asyncio.to_thread(opened.wait, 60)
        return await read(*args)

    monkeypatch.setattr(checkpointables, "read_by_layout", held)
    fresh = Counter()
    response = hf.load_checkpointables_async(place, {"it": fresh, "state": None})
    assert not response.done()
    assert fresh.value == 0
    opened.set()
    assert response.result()["state"] == {"n": 1}
    assert fresh.value == 7


class TestRegistry:
    def test_entries_are_found_by_name_and_listed_in_order(self):
        registry = h.local_registry(include_global_registry=False)
        assert registry.add(PointHandler) is registry
        registry.add(OtherPointHandler, checkpointable_name="point")
        assert registry.has("point")
        assert not registry.has("state")
        assert registry.get("point") is OtherPointHandler
        assert registry.get_all_entries() == [(PointHandler, None), (OtherPointHandler, "point")]
        assert registry.get_secondary_typestrs(PointHandler) == []
        assert "OtherPointHandler for 'point'" in repr(registry)

    def test_what_cannot_be_added_is_refused(self):
        registry = h.local_registry(include_global_registry=False)
        with pytest.raises(ValueError, match="added as a class"):
            registry.add(PointHandler())
        with pytest.raises(ValueError, match="list of texts"):
            registry.add(PointHandler, secondary_typestrs="a.b")
        registry.add(PointHandler)
        with pytest.raises(hf.errors.AlreadyExistsError, match="PointHandler is registered"):
            registry.add(PointHandler)
        registry.add(PointHandler, checkpointable_name="a")
        with pytest.raises(ValueError, match="item 'a' has a handler already"):
            registry.add(OtherPointHandler, checkpointable_name="a")
        with pytest.raises(KeyError, match="called 'b'; names with one: \\['a'\\]"):
            registry.get("b")
        assert issubclass(hf.errors.NoEntryError, KeyError)

    def test_the_registry_of_a_default_context_is_a_view_of_the_global_one(self):
        view = hf.Context().checkpointables.registry
        assert view.get_all_entries() == h.global_registry().get_all_entries()
        with pytest.raises(NotImplementedError, match="register_handler"):
            view.add(PointHandler)
        assert view.get("state") is h.PyTreeHandler
        with pytest.raises(ValueError, match="registry must be"):
            o.CheckpointablesOptions(registry={})

    def test_a_local_registry_does_not_change_the_global_one(self):
        before = h.global_registry().get_all_entries()
        local = h.local_registry(h.local_registry(include_global_registry=False).add(PointHandler))
        assert local.get_all_entries() == [*before, (PointHandler, None)]
        assert h.global_registry().get_all_entries() == before
        with pytest.raises(hf.errors.AlreadyExistsError):
            h.local_registry(local)

    def test_without_any_handler_nothing_is_saved(self, tmp_path):
        empty = h.local_registry(include_global_registry=False)
        context = hf.Context(checkpointables=o.CheckpointablesOptions(registry=empty))
        with pytest.raises(KeyError, match="no handler takes item 'x'.*Handlers: none"):
            hf.save_checkpointables(tmp_path / "c", {"x": {"a": 1}}, context=context)
        assert list(tmp_path.iterdir()) == []

    def test_a_registered_handler_is_used_everywhere(self, place, monkeypatch):
        monkeypatch.setattr(h.global_registry(), "_entries", h.global_registry().get_all_entries())
        assert h.register_handler(PointHandler) is PointHandler
        hf.save_checkpointables(place, {"point": Point(1, 2)})
        assert hf.load_checkpointables(place) == {"point": Point(1, 2)}


@pytest.mark.parametrize("handler", [h.PyTreeHandler, h.JsonHandler, h.ProtoHandler, PointHandler])
def test_handlers_follow_the_protocol(handler):
    assert isinstance(handler(), h.CheckpointableHandler)
