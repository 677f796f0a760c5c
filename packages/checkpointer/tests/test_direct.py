"""The methods of Orbax's protocol on holdfast's own handlers, on a plain folder."""

import asyncio

import jax
import numpy as np
import pytest
from etils import epath
from google.protobuf import struct_pb2

import holdfast as hf

a = hf.args


def message():
    made = struct_pb2.Struct()
    made.update({"layers": 3})
    return made


CASES = {
    "tree": (hf.PyTreeCheckpointHandler, a.PyTreeSave, a.PyTreeRestore, {"n": 3, "s": "x"}),
    "standard": (hf.StandardCheckpointHandler, a.StandardSave, a.StandardRestore, {"n": 3}),
    "array": (hf.ArrayCheckpointHandler, a.ArraySave, a.ArrayRestore, 2.5),
    "json": (hf.JsonCheckpointHandler, a.JsonSave, a.JsonRestore, {"a": [1, None, "é"]}),
    "proto": (
        hf.ProtoCheckpointHandler, a.ProtoSave,
        lambda: a.ProtoRestore(struct_pb2.Struct), message(),
    ),
    "state": (
        hf.NumpyRandomKeyCheckpointHandler, a.NumpyRandomKeySave, a.NumpyRandomKeyRestore,
        {"state": {"n": 1}},
    ),
    "items": (
        hf.CompositeCheckpointHandler,
        lambda v: a.Composite(config=a.JsonSave(v["config"]), state=a.StandardSave(v["state"])),
        lambda: a.Composite(config=a.JsonRestore(), state=a.StandardRestore()),
        {"config": 1, "state": {"n": 2}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_handler_saves_to_a_folder_and_restores_from_it(case, place):
    kind, save, restore, value = CASES[case]
    handler = kind()
    handler.save(f"{place}/x", args=save(value))
    handler.finalize(f"{place}/x")
    handler.finalize(f"{place}/x")  # again does nothing
    found = handler.restore(f"{place}/x", args=restore())
    assert (dict(found) if case == "items" else found) == value
    fresh = kind().restore(f"{place}/x", args=restore())
    assert (dict(fresh) if case == "items" else fresh) == value
    handler.close()


def test_an_item_of_a_composite_may_extend_one_of_ours(tmp_path):
    called = []

    class Mine(hf.StandardCheckpointHandler):
        def finalize(self, directory):
            called.append(directory.name)
            super().finalize(directory)

    handler = hf.CompositeCheckpointHandler("other", state=Mine())
    handler.save(tmp_path, a.Composite(state=a.StandardSave({"n": 1})))
    with pytest.raises(hf.errors.NotFinalizedError):
        handler.restore(tmp_path)
    handler.finalize(tmp_path)
    assert called == ["state"]
    restored = handler.restore(tmp_path, a.Composite(state=a.StandardRestore()))
    assert restored.state == {"n": 1}


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("json", "proto")])
def test_what_is_not_finalized_is_not_restored(case, place):
    kind, save, restore, value = CASES[case]
    handler = kind()
    handler.save(f"{place}/x", args=save(value))
    for other in (handler, kind()):
        with pytest.raises(hf.errors.NotFinalizedError, match=r"call finalize\(\)"):
            other.restore(f"{place}/x", args=restore())
    with pytest.raises(ValueError, match="only the handler that saved"):
        kind().finalize(f"{place}/x")
    handler.finalize(f"{place}/x")
    handler.restore(f"{place}/x", args=restore())


def test_arguments_may_be_given_as_such_or_as_values(place):
    handler = hf.StandardCheckpointHandler()
    handler.save(f"{place}/1", {"n": 1})
    handler.save(f"{place}/2", item={"n": 2})
    handler.save(f"{place}/3", a.StandardSave({"n": 3}))
    for number in (1, 2, 3):
        handler.finalize(f"{place}/{number}")
        assert handler.restore(f"{place}/{number}") == {"n": number}
    assert handler.restore(f"{place}/1", {"n": int}) == {"n": 1}
    assert handler.restore(f"{place}/1", item={"n": int}) == {"n": 1}
    with pytest.raises(TypeError, match="StandardSave"):
        handler.save(f"{place}/4", args=a.JsonSave(1))


def test_an_asynchronous_save_returns_futures_and_finalize_waits_for_them(place):
    handler = hf.StandardCheckpointHandler()
    state = {"w": np.ones(1000)}
    futures = asyncio.run(handler.async_save(f"{place}/x", args=a.StandardSave(state)))
    state["w"][:] = 0
    handler.finalize(f"{place}/x")
    assert [future.result(timeout=60) for future in futures] == [None]
    assert handler.restore(f"{place}/x")["w"].all()


def test_a_folder_is_a_path_of_any_kind(tmp_path):
    handler = hf.StandardCheckpointHandler()
    for directory in (tmp_path / "a", epath.Path(tmp_path / "b"), f"file://{tmp_path}/c"):
        handler.save(directory, {"n": 1})
        handler.finalize(directory)
        assert handler.restore(directory) == {"n": 1}


def test_metadata_describes_a_folder(place):
    handler = hf.StandardCheckpointHandler()
    handler.save(f"{place}/x", {"w": np.ones((2, 3))})
    with pytest.raises(hf.errors.NotFinalizedError):
        handler.metadata(f"{place}/x")
    handler.finalize(f"{place}/x")
    assert handler.metadata(f"{place}/x")["w"].shape == (2, 3)
    items = hf.CompositeCheckpointHandler()
    args = a.Composite(config=a.JsonSave(1), state=a.StandardSave({"w": np.ones(3)}))
    items.save(f"{place}/items", args=args)
    with pytest.raises(ValueError, match=r"item 'state' .* is a temporary one: call finalize\(\)"):
        items.metadata(f"{place}/items")
    items.finalize(f"{place}/items")
    told = items.metadata(f"{place}/items")
    handlers = {"config": hf.JsonCheckpointHandler, "state": hf.StandardCheckpointHandler}
    assert told.item_handlers == {name: kind.typestr() for name, kind in handlers.items()}
    fresh = hf.CompositeCheckpointHandler().metadata(f"{place}/items")
    assert fresh.item_handlers == {"config": None, "state": None}
    found = told.item_metadata
    assert isinstance(found, a.CompositeItemMetadata)
    assert found.state["w"].shape == (3,)
    assert found.config is None


def test_items_of_a_checkpoint_are_restored_by_their_handlers_and_verified(place):
    with hf.Checkpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        args = a.Composite(config=a.JsonSave({"n": 1}), state=a.StandardSave({"w": 2}))
        checkpointer.save(f"{place}/x", args=args)
    assert hf.JsonCheckpointHandler().restore(f"{place}/x/config") == {"n": 1}
    assert hf.StandardCheckpointHandler().restore(f"{place}/x/state") == {"w": 2}
    assert hf.StandardCheckpointHandler().metadata(f"{place}/x/state")["w"] == 2
    assert hf.CompositeCheckpointHandler().restore(f"{place}/x").config == {"n": 1}
    if not place.startswith("memory:"):
        with open(f"{place}/x/config/metadata", "w") as file:
            file.write('{"n":2}')
        with pytest.raises(hf.errors.DamagedCheckpointError):
            hf.JsonCheckpointHandler().restore(f"{place}/x/config")


def test_a_folder_in_a_checkpoint_is_never_written_to(place):
    hf.save(f"{place}/x", {"w": 1})
    for directory in (f"{place}/x", f"{place}/x/state", f"{place}/x/state/more"):
        with pytest.raises(FileExistsError, match="a checkpoint is here"):
            hf.JsonCheckpointHandler().save(directory, 1)
    assert hf.verify(f"{place}/x").ok


def test_a_tree_is_not_saved_over_a_tree_and_a_file_replaces_a_file(place):
    handler = hf.StandardCheckpointHandler()
    handler.save(f"{place}/x", {"n": 1})
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        handler.save(f"{place}/x", {"n": 2})
    handler.finalize(f"{place}/x")
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        handler.save(f"{place}/x", {"n": 2})
    assert handler.restore(f"{place}/x") == {"n": 1}
    hf.JsonCheckpointHandler().save(f"{place}/j", 1)
    hf.JsonCheckpointHandler().save(f"{place}/j", 2)
    assert hf.JsonCheckpointHandler().restore(f"{place}/j") == 2


def test_where_nothing_is_nothing_is_restored_or_finalized(place):
    handler = hf.StandardCheckpointHandler()
    for call in (handler.restore, handler.metadata, handler.finalize):
        with pytest.raises(FileNotFoundError):
            call(f"{place}/nothing")


def test_what_cannot_be_saved_is_refused_before_anything_is_written(tmp_path):
    for handler, item in (
        (hf.StandardCheckpointHandler(), {"f": object()}),
        (hf.JsonCheckpointHandler(), object()),
    ):
        with pytest.raises(ValueError):
            handler.save(tmp_path / "x", item)
    assert list(tmp_path.iterdir()) == []


def test_keys_go_into_a_folder_too(place):
    key = jax.random.key(3, impl="rbg")
    handler = hf.JaxRandomKeyCheckpointHandler()
    handler.save(f"{place}/x", args=a.JaxRandomKeySave(key))
    handler.finalize(f"{place}/x")
    assert handler.restore(f"{place}/x") == key
    with pytest.raises(FileExistsError, match="choose an empty folder"):
        handler.save(f"{place}/x", args=a.JaxRandomKeySave(key))


# --- options of constructors ----------------------------------------------------------------


@pytest.mark.parametrize("kind", [hf.JsonCheckpointHandler, hf.ProtoCheckpointHandler])
def test_processes_that_the_job_has_are_accepted_and_others_refused(kind):
    processes = hf.options.MultiprocessingOptions
    kind(multiprocessing_options=processes())
    kind(multiprocessing_options=processes(primary_host=0))
    with pytest.raises(ValueError, match="process"):
        kind(multiprocessing_options=processes(primary_host=3))
    with pytest.raises(TypeError, match=r"must be holdfast's MultiprocessingOptions, got .*int"):
        kind(multiprocessing_options=3)


def test_options_of_items_that_share_a_commit_are_refused_in_words():
    options = hf.options
    hf.CompositeCheckpointHandler(
        composite_options=hf.CompositeOptions(
            multiprocessing_options=options.MultiprocessingOptions(primary_host=0),
            file_options=options.FileOptions(),
            async_options=options.AsyncOptions(),
            atomicity_options=options.AtomicityOptions(),
        )
    )
    for given, told in (
        ({"temporary_path_class": int}, "all items share one commit"),
        ({"file_options": options.FileOptions(path_permission_mode=0o750)}, "file_options"),
        ({"async_options": options.AsyncOptions(timeout_secs=3)}, "async_options"),
        ({"atomicity_options": options.AtomicityOptions(mode="commit_file")}, "atomicity_options"),
    ):
        with pytest.raises(hf.errors.UnsupportedOptionError, match=told):
            hf.CompositeOptions(**given)
    with pytest.raises(TypeError, match="FileOptions"):
        hf.CompositeOptions(file_options=3)
    with pytest.raises(TypeError, match="CompositeOptions"):
        hf.CompositeCheckpointHandler(composite_options=3)
