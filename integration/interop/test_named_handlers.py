"""Handlers written for Orbax's v1 protocol, unchanged, with Orbax and with us."""

import dataclasses
import json

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import holdfast as hf


@dataclasses.dataclass
class Point:
    x: int
    y: int


class PointHandler(ocp.handlers.CheckpointableHandler[Point, Point]):
    """Derives from Orbax's protocol, as its documentation shows."""

    async def _write(self, directory, checkpointable):
        directory = await directory.await_creation()
        (directory / "point.json").write_text(json.dumps(dataclasses.asdict(checkpointable)))

    async def save(self, directory, checkpointable):
        return self._write(directory, dataclasses.replace(checkpointable))

    async def _read(self, directory):
        return Point(**json.loads((directory / "point.json").read_text()))

    async def load(self, directory, abstract_checkpointable=None):
        return self._read(directory)

    async def metadata(self, directory):
        return Point

    def is_handleable(self, checkpointable):
        return isinstance(checkpointable, Point)

    def is_abstract_handleable(self, abstract_checkpointable):
        return isinstance(abstract_checkpointable, Point) or abstract_checkpointable is Point


@pytest.fixture
def ours():
    registry = hf.handlers.local_registry().add(PointHandler)
    return hf.Context(checkpointables=hf.options.CheckpointablesOptions(registry=registry))


@pytest.fixture
def theirs():
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(PointHandler)
    return context


def test_each_reads_the_items_that_the_other_saved_with_it(tmp_path, ours, theirs):
    items = {"point": Point(1, 2), "state": {"w": np.arange(3)}}
    with ours:
        hf.save_checkpointables(tmp_path / "ours", items)
    with theirs:
        ocp.save_checkpointables(tmp_path / "theirs", items)
        found = ocp.load_checkpointables(tmp_path / "ours")
        assert found["point"] == Point(1, 2)
        np.testing.assert_array_equal(found["state"]["w"], np.arange(3))
    with ours:
        for where in ("ours", "theirs"):
            found = hf.load_checkpointables(tmp_path / where)
            assert found["point"] == Point(1, 2)
            np.testing.assert_array_equal(found["state"]["w"], np.arange(3))
            assert hf.checkpointables_metadata(tmp_path / where).metadata["point"] is Point


def test_it_runs_where_there_are_no_folders(ours):
    with ours:
        hf.save_checkpointables("memory://orbax-v1-handler/c", {"point": Point(3, 4)})
        assert hf.load_checkpointables("memory://orbax-v1-handler/c", {"point": Point}) == {
            "point": Point(3, 4)
        }


def test_json_that_orbax_s_v1_handler_wrote_is_read_and_the_reverse(tmp_path):
    config = {"layers": 3, "names": ["a", "b"]}
    context = ocp.Context()
    context.checkpointables.registry = ocp.handlers.local_registry().add(
        ocp.handlers.JsonHandler, checkpointable_name="config"
    )
    with context:
        ocp.save_checkpointables(
            tmp_path / "theirs", {"config": config, "state": {"a": np.ones(1)}}
        )
    assert hf.load_checkpointables(tmp_path / "theirs", {"config": None}) == {"config": config}
    items = {"config": hf.args.JsonSave(config), "state": {"a": np.ones(1)}}
    hf.save_checkpointables(tmp_path / "ours", items)
    assert ocp.load_checkpointables(tmp_path / "ours", {"config": None}) == {"config": config}
