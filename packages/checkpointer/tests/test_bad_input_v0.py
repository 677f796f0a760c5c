"""Each error of the v0 interface: its type is the one that Orbax raises, and nothing was done."""

import jax
import numpy as np
import pytest
from google.protobuf import struct_pb2

import holdfast as hf

a = hf.args
o = hf.options

STANDARD = hf.StandardCheckpointHandler
TREE = hf.PyTreeCheckpointHandler
COMPOSITE = hf.CompositeCheckpointHandler


REGISTRY = hf.CheckpointHandlerRegistry()


class Unregistered(a.CheckpointArgs):
    """Arguments that no handler takes."""


# What is refused when it is made: (call, type, words of the message).
MADE = {
    "a metadata store": (
        lambda: hf.Checkpointer(STANDARD(), checkpoint_metadata_store=object()),
        ValueError, "checkpoint_metadata_store=.*one commit",
    ),
    "a temporary path class": (
        lambda: hf.AsyncCheckpointer(STANDARD(), temporary_path_class=object),
        ValueError, "temporary_path_class=.*the storage of a URL decides",
    ),
    "no time": (lambda: hf.AsyncCheckpointer(STANDARD(), 0), ValueError, "must be positive, got 0"),
    "negative time": (
        lambda: hf.StandardCheckpointer(async_options=o.AsyncOptions(timeout_secs=-1)),
        ValueError, "must be positive, got -1",
    ),
    "a barrier": (
        lambda: hf.StandardCheckpointer(async_options=o.AsyncOptions(barrier_sync_fn=print)),
        NotImplementedError, "barrier_sync_fn=.*has no meaning",
    ),
    "directories beforehand": (
        lambda: o.AsyncOptions(create_directories_asynchronously=False),
        NotImplementedError, "create_directories_asynchronously=False",
    ),
    "options of another kind": (
        lambda: hf.Checkpointer(STANDARD(), file_options=o.AsyncOptions()),
        TypeError, "file must be holdfast's options.FileOptions",
    ),
    "files of arrays": (
        lambda: hf.PyTreeCheckpointer(use_ocdbt=False), NotImplementedError, "use_ocdbt=False",
    ),
    "zarr 2": (
        lambda: hf.PyTreeCheckpointHandler(use_zarr3=False), NotImplementedError, "use_zarr3=False",
    ),
    "an aggregate": (
        lambda: TREE("checkpoint"), NotImplementedError, "aggregate_filename='checkpoint'",
    ),
    "a registry of types": (
        lambda: TREE(type_handler_registry=object()), NotImplementedError, "type_handler_registry=",
    ),
    "an implementation": (lambda: TREE(handler_impl=object()), NotImplementedError, "handler_impl"),
    "a validator": (
        lambda: TREE(array_metadata_validator=print), NotImplementedError, "array_metadata_valid",
    ),
    "a priority": (
        lambda: TREE(is_prioritized_key_fn=print), NotImplementedError, "is_prioritized_key_fn=",
    ),
    "auto without a limit": (
        lambda: TREE(save_device_host_concurrent_gb="auto"),
        ValueError, "max_transfer_concurrent_gb",
    ),
    "no memory": (lambda: STANDARD(save_concurrent_gb=0), ValueError, "save_concurrent_gb must be"),
    "an unknown option": (lambda: hf.StandardCheckpointer(colour="red"), TypeError, "colour"),
    "a registry and names": (
        lambda: COMPOSITE("x", handler_registry=hf.CheckpointHandlerRegistry()),
        ValueError, "not both",
    ),
    "a dunder name": (lambda: a.Composite(__x=1), ValueError, "cannot start with '__'"),
    "a missing key": (lambda: a.Composite(x=1)["z"], KeyError, "no item 'z'; there are: 'x'"),
    "a missing attribute": (lambda: a.Composite(x=1).z, KeyError, "no item 'z'"),
    "a changed composite": (
        lambda: setattr(a.Composite(x=1), "x", 2), ValueError, "Composite is immutable",
    ),
    "neither save nor restore": (
        lambda: a.register_with_handler(hf.JsonCheckpointHandler), ValueError, "for_save=True",
    ),
    "no arguments": (
        lambda: a.register_with_handler(hf.JsonCheckpointHandler, for_save=True)(int),
        TypeError, "CheckpointArgs",
    ),
    "the handler of what is no argument": (
        lambda: a.get_registered_handler_cls(3), TypeError, "got int",
    ),
    "the handler of unknown arguments": (
        lambda: a.get_registered_handler_cls(Unregistered()), ValueError, "Unregistered",
    ),
    "an entry of a registry twice": (
        lambda: [REGISTRY.add("x", a.JsonSave) for _ in range(2)],
        ValueError, "JsonSave already",
    ),
    "an entry without a handler": (
        lambda: hf.CheckpointHandlerRegistry().add("x", Unregistered), ValueError, "Unregistered",
    ),
    "no entry": (
        lambda: hf.CheckpointHandlerRegistry().get("x", a.JsonSave), KeyError, "item 'x'",
    ),
    "different shapes": (
        lambda: a.ArrayRestoreArgs(shape=(1,), global_shape=(2,)), ValueError, "must be the same",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MADE)
def test_what_cannot_be_made_says_why(case):
    call, kind, told = MADE[case]
    with pytest.raises(kind, match=told):
        call()


# What a save refuses: (handler, arguments, keywords, type, words of the message).
SAVED = {
    "other arguments": (STANDARD, (), {"args": a.JsonSave(1)}, TypeError, "takes StandardSave"),
    "no CheckpointArgs": (STANDARD, (), {"args": {"w": 1}}, TypeError, "Save, got dict"),
    "arguments and fields": (
        STANDARD, (a.StandardSave({"w": 1}), None), {}, TypeError, "alone, or its fields",
    ),
    "an unknown field": (STANDARD, ({"w": 1},), {"colour": 1}, TypeError, "colour"),
    "nothing": (STANDARD, (), {}, TypeError, "StandardSave"),
    "custom metadata": (
        STANDARD, ({"w": 1},), {"custom_metadata": [1]}, ValueError, "must be a JSON object",
    ),
    "None": (STANDARD, (None,), {}, ValueError, "got None"),
    "an empty tree": (STANDARD, ({},), {}, ValueError, "an empty dict"),
    "one array": (STANDARD, (np.ones(3),), {}, ValueError, "got ndarray.*ArraySave"),
    "one number": (STANDARD, (3,), {}, ValueError, "got int.*ArraySave"),
    "text": (STANDARD, ({"a": {"b": "x"}},), {}, ValueError, r"\['a'\]\['b'\] is str.*PyTreeSave"),
    "an unsupported leaf": (STANDARD, ({"a": {"b": object()}},), {}, ValueError, r"a.*b.*object"),
    "an aggregate": (
        STANDARD, ({"w": 1}, {"w": a.SaveArgs(aggregate=True)}), {}, ValueError, "aggregate=True",
    ),
    "a description": (STANDARD, (hf.TreeMetadata({"w": 1}),), {}, ValueError, "description"),
    "no array": (hf.ArrayCheckpointHandler, ({"w": 1},), {}, TypeError, "got dict"),
    "no JSON": (hf.JsonCheckpointHandler, ({"x": object()},), {}, TypeError, "x"),
    "no message": (hf.ProtoCheckpointHandler, ("text",), {}, TypeError, "got str"),
    "no key": (hf.JaxRandomKeyCheckpointHandler, (np.ones(2),), {}, TypeError, "got ndarray"),
    "no state": (hf.NumpyRandomKeyCheckpointHandler, (7,), {}, TypeError, "got int"),
    "no items": (COMPOSITE, (), {"args": a.Composite()}, ValueError, "at least one item"),
    "an item that is None": (COMPOSITE, (), {"args": a.Composite(x=None)}, ValueError, "'x'"),
    "a positional item": (COMPOSITE, (a.StandardSave({"w": 1}),), {}, TypeError, "Composite"),
}  # fmt: skip


@pytest.mark.parametrize("make", [hf.Checkpointer, hf.AsyncCheckpointer])
@pytest.mark.parametrize("case", SAVED)
def test_what_cannot_be_saved_is_refused_before_anything_is_written(make, case, tmp_path):
    handler, positional, keyword, kind, told = SAVED[case]
    with make(handler()) as checkpointer, pytest.raises(kind, match=told):
        checkpointer.save(tmp_path / "x", *positional, **keyword)
    assert list(tmp_path.iterdir()) == []


# What a restore refuses: (handler, place below the folder, keywords, type, words).
RESTORED = {
    "nothing there": (STANDARD, "nothing", {}, FileNotFoundError, "no checkpoint is here"),
    "a folder of checkpoints": (STANDARD, "", {}, FileNotFoundError, "folder of checkpoints"),
    "an unfinished save of Orbax's": (
        STANDARD, "x.orbax-checkpoint-tmp", {}, ValueError, "never committed",
    ),
    "an old msgpack file": (TREE, "old", {}, FileNotFoundError, "msgpack.*load it with Orbax"),
    "no tree": (STANDARD, "json", {}, FileNotFoundError, "holds no PyTree"),
    "no JSON": (hf.JsonCheckpointHandler, "tree", {}, FileNotFoundError, "metadata"),
    "another structure": (STANDARD, "tree", {"item": {"v": 1}}, ValueError, "v"),
    "another shape": (STANDARD, "tree", {"item": {"w": np.ones(4)}}, ValueError, r"\[4\]"),
    "a target that no checkpoint has": (STANDARD, "tree", {"item": {"w": "x"}}, ValueError, "w"),
    "transforms": (TREE, "tree", {"transforms": {}}, ValueError, "transforms"),
    "no class of messages": (
        hf.ProtoCheckpointHandler, "tree", {}, ValueError, "needs the message's class",
    ),
    "no message there": (
        hf.ProtoCheckpointHandler, "tree", {"item": struct_pb2.Struct}, FileNotFoundError, "proto",
    ),
    "other arguments": (STANDARD, "tree", {"args": a.JsonRestore()}, TypeError, "StandardRestore"),
    "an item that is not there": (
        COMPOSITE, "items", {"args": a.Composite(z=a.JsonRestore())}, KeyError, "no item 'z'",
    ),
    "None for an unknown item": (
        COMPOSITE, "items", {"args": a.Composite(z=None)}, ValueError, "no handler yet",
    ),
    "arguments of another handler": (
        lambda: COMPOSITE(state=STANDARD()), "items",
        {"args": a.Composite(state=a.JsonRestore())}, ValueError, "takes StandardRestore, got Json",
    ),
    "an item that needs arguments": (COMPOSITE, "items", {}, ValueError, "needs arguments"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tree, a JSON value, several items, and what a killed Orbax leaves."""
    folder = tmp_path_factory.mktemp("v0")
    hf.Checkpointer(STANDARD()).save(folder / "tree", {"w": np.ones(3)})
    hf.Checkpointer(hf.JsonCheckpointHandler("c.json")).save(folder / "json", args=a.JsonSave(1))
    hf.Checkpointer(COMPOSITE()).save(
        folder / "items",
        args=a.Composite(state=a.StandardSave({"w": 1}), m=a.ProtoSave(struct_pb2.Struct())),
    )
    (folder / "old").mkdir()
    (folder / "old/checkpoint").write_bytes(b"\x81\xa1w\x01")
    (folder / "x.orbax-checkpoint-tmp").mkdir()
    (folder / "x.orbax-checkpoint-tmp/_CHECKPOINT_METADATA").write_text("{}")
    return folder


@pytest.mark.parametrize("make", [hf.Checkpointer, hf.AsyncCheckpointer])
@pytest.mark.parametrize("case", RESTORED)
def test_what_cannot_be_restored_says_why(make, case, folder):
    handler, name, keyword, kind, told = RESTORED[case]
    before = sorted(folder.rglob("*"))
    with make(handler()) as checkpointer, pytest.raises(kind, match=told):
        checkpointer.restore(folder / name, **keyword)
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("make", [hf.Checkpointer, hf.AsyncCheckpointer])
@pytest.mark.parametrize("kind", [ValueError, FileExistsError])
def test_a_destination_that_is_taken_is_refused_and_stays(make, kind, place):
    with make(STANDARD()) as checkpointer:
        checkpointer.save(place, {"w": 1})
        with pytest.raises(kind, match="force=True"):
            checkpointer.save(place, {"w": 2})
        assert checkpointer.restore(place) == {"w": 1}


def test_an_item_keeps_the_handler_of_its_first_use(place):
    with hf.Checkpointer(COMPOSITE()) as checkpointer:
        checkpointer.save(f"{place}/1", args=a.Composite(x=a.JsonSave(1)))
        with pytest.raises(ValueError, match="takes JsonSave, got StandardSave"):
            checkpointer.save(f"{place}/2", args=a.Composite(x=a.StandardSave({"w": 1})))
    assert not hf.is_checkpoint(f"{place}/2")


def test_processes_that_the_job_does_not_have_are_refused_at_the_save(tmp_path):
    others = o.MultiprocessingOptions(primary_host=3)
    for handler, given in (
        (STANDARD(), others),
        (STANDARD(multiprocessing_options=others), None),
    ):
        with (
            hf.Checkpointer(handler, multiprocessing_options=given) as checkpointer,
            pytest.raises(ValueError, match=r"names the processes \[3\]"),
        ):
            checkpointer.save(tmp_path / "x", {"w": jax.numpy.ones(3)})
    assert list(tmp_path.iterdir()) == []
