"""Every handler, holdfast's and users' own, on every kind of object store."""

import concurrent.futures
import dataclasses
import json
import tempfile

import jax
import numpy as np
import pytest
from google.protobuf import struct_pb2

import holdfast as hf

a = hf.args


class Text(hf.CheckpointHandler):
    """A user's handler, which writes with `open`."""

    def save(self, directory, args):
        (directory / "deep").mkdir()
        with open(directory / "deep" / "text", "w") as file:
            file.write(json.dumps(args.item))

    def restore(self, directory, args):
        return json.loads((directory / "deep" / "text").read_text())


@a.register_with_handler(Text, for_save=True, for_restore=True)
@dataclasses.dataclass
class TextArgs(a.CheckpointArgs):
    item: object = None


class LateText(hf.AsyncCheckpointHandler):
    """A user's handler, which writes behind the caller."""

    async def async_save(self, directory, args):
        pool = concurrent.futures.ThreadPoolExecutor(1)
        future = pool.submit((directory / "text").write_text, json.dumps(args.item))
        pool.shutdown(wait=False)
        return [future]

    def restore(self, directory, args):
        return json.loads((directory / "text").read_text())


@a.register_with_handler(LateText, for_save=True, for_restore=True)
@dataclasses.dataclass
class LateTextArgs(a.CheckpointArgs):
    item: object = None


MESSAGE = struct_pb2.Struct()
MESSAGE.update({"layers": 3})
ITEMS = {
    "tree": (hf.PyTreeCheckpointHandler, a.PyTreeSave({"s": "x", "w": np.arange(4)})),
    "standard": (hf.StandardCheckpointHandler, a.StandardSave({"n": 3})),
    "array": (hf.ArrayCheckpointHandler, a.ArraySave(np.arange(5))),
    "config": (hf.JsonCheckpointHandler, a.JsonSave({"a": [1, None]})),
    "key": (hf.JaxRandomKeyCheckpointHandler, a.JaxRandomKeySave(jax.random.key(3, impl="rbg"))),
    "state": (hf.NumpyRandomKeyCheckpointHandler, a.NumpyRandomKeySave({"n": 1})),
    "message": (hf.ProtoCheckpointHandler, a.ProtoSave(MESSAGE)),
    "text": (Text, TextArgs({"t": 1})),
    "late": (LateText, LateTextArgs([1, 2])),
}


def same(found, saved):
    if isinstance(saved, jax.Array):
        return found == saved
    return str(found) == str(saved)


@pytest.fixture
def spools(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_all_items_are_one_checkpoint(object_store, spools):
    url = f"{object_store.root}/all"
    with hf.AsyncCheckpointer(hf.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(url, args=a.Composite(**{n: save for n, (_, save) in ITEMS.items()}))
    fresh = hf.Checkpointer(hf.CompositeCheckpointHandler())
    wanted = dict.fromkeys(ITEMS) | {"message": a.ProtoRestore(struct_pb2.Struct)}
    given = {n: ITEMS[n][0] for n in ITEMS}
    known = hf.Checkpointer(hf.CompositeCheckpointHandler(**{n: k() for n, k in given.items()}))
    found = known.restore(url, args=a.Composite(**wanted))
    for name, (_, save) in ITEMS.items():
        assert same(found[name], save.item), name
    some = fresh.restore(url, args=a.Composite(text=TextArgs(), config=a.JsonRestore()))
    assert dict(some) == {"text": {"t": 1}, "config": {"a": [1, None]}}
    assert hf.verify(url).ok
    assert list(spools.iterdir()) == []


def test_a_users_handler_alone_and_its_failure(object_store, spools):
    class Unlucky(Text):
        def finalize(self, directory):
            raise ConnectionAbortedError("mine")

    with hf.Checkpointer(Text()) as checkpointer:
        checkpointer.save(f"{object_store.root}/x", args=TextArgs([1]))
        assert checkpointer.restore(f"{object_store.root}/x") == [1]
        checkpointer.save(f"{object_store.root}/x", args=TextArgs([2]), force=True)
        assert checkpointer.restore(f"{object_store.root}/x") == [2]
    with pytest.raises(ConnectionAbortedError, match="mine"):
        hf.Checkpointer(Unlucky()).save(f"{object_store.root}/y", args=TextArgs([1]))
    assert not hf.is_checkpoint(f"{object_store.root}/y")
    assert list(spools.iterdir()) == []


def test_a_handler_of_holdfasts_on_a_plain_folder(object_store):
    handler = hf.StandardCheckpointHandler()
    handler.save(f"{object_store.root}/x", {"w": np.arange(3)})
    with pytest.raises(hf.errors.NotFinalizedError):
        handler.restore(f"{object_store.root}/x")
    handler.finalize(f"{object_store.root}/x")
    assert np.array_equal(handler.restore(f"{object_store.root}/x")["w"], np.arange(3))
