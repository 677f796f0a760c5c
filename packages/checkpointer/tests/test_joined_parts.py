"""The primary commits only what each process of a job told of, chunk by chunk."""

import asyncio
import dataclasses
import uuid

import numpy as np
import pytest
import tensorstore as ts

from holdfast_checkpointer.arrays import formats
from holdfast_checkpointer.arrays.options import ArraySaveOptions
from holdfast_checkpointer.arrays.sharing import Share, Slicing
from holdfast_checkpointer.arrays.snapshot import snapshot_all
from holdfast_checkpointer.handlers.pytree import PyTreeCheckpointHandler
from holdfast_checkpointer.handlers.staged_tree import StagedPyTree
from holdfast_checkpointer.items.describe import describe
from holdfast_checkpointer.items.storing import StorageRequest
from holdfast_checkpointer.options import Context
from holdfast_metadata import MetadataError
from holdfast_storage import open_backend
from holdfast_storage.commit import open_committed, read_record, write_attempt

OPTIONS = ArraySaveOptions(chunk_bytes=64)
TREE = {
    "w": np.arange(64, dtype=np.float32).reshape(16, 4),
    "number": np.float32(3),
    "empty": np.zeros((0, 4), np.float32),
}
FINAL = "checkpoint"


def staged(me):
    """What one of two processes has of the tree: two of the four chunks of `w`."""
    described = describe(TREE, StorageRequest(OPTIONS))
    share = Share(me, (0, 1), OPTIONS.chunk_bytes, Slicing(least_bytes=1))
    arrays = snapshot_all(described.arrays(), described.array_rules(), share=share)
    return StagedPyTree(described, arrays, OPTIONS, "handler", None, me)


def rehearse(tell=lambda record: record, spoil=None):
    """Saves as two processes would; the second tells of something else, or its database changes.

    Returns:
        The storage, and what was raised.
    """
    backend = open_backend(f"memory://test-{uuid.uuid4().hex}")

    async def write(area):
        first, second = staged(0), staged(1)
        own = await first.write(area)
        told = first.decode(second.encode(await second.write(area)))
        if spoil is not None:
            target = area.child("ocdbt.process_1").kv_target()
            spec = formats.database_spec(target, write=True)
            await spoil(await ts.KvStore.open(spec, context=formats.context_for(target)))
        await first.finish(area, [own, dataclasses.replace(told, detail=tell(told.detail))])

    async def save():
        try:
            await write_attempt(backend, FINAL, write)
        except MetadataError as error:
            assert (await read_record(backend, FINAL)).record is None
            assert [info async for info in backend.walk("")] == []
            return str(error)
        area = await open_committed(backend, FINAL)
        return await PyTreeCheckpointHandler().verify(area, Context())

    return asyncio.run(save())


def telling(change):
    """A process that tells of other chunks of `w` than it wrote."""

    def tell(written):
        arrays = [
            dataclasses.replace(array, digests=change(dict(array.digests)))
            if array.name == "w"
            else array
            for array in written.arrays
        ]
        return dataclasses.replace(written, arrays=arrays)

    return tell


def test_what_two_processes_wrote_is_one_item():
    assert rehearse() == (3, [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: {"1.0": d["1.0"]}, "no process wrote its chunks ['3.0']"),
        (
            lambda d: {**d, "0.0": "x"},
            "chunk 0.0 was written twice, the second time by process 1",
        ),
        (lambda d: {**d, "7.0": "x"}, "chunks ['7.0'] of process 1 are none of it"),
        (
            lambda d: {"1.0": d["1.0"], "4.0": d["3.0"]},
            "no process wrote its chunks ['3.0']; chunks ['4.0'] of process 1 are none of it",
        ),
    ],
    ids=["lacks one", "one twice", "one unknown", "one wrong"],
)
def test_a_record_of_other_chunks_than_the_array_has_is_refused(change, said):
    assert rehearse(telling(change)) == f"the array 'w': {said}"


def test_a_record_of_an_array_that_nobody_asked_for_is_refused():
    def tell(written):
        arrays = [dataclasses.replace(array, name="w2") for array in written.arrays]
        return dataclasses.replace(written, arrays=arrays)

    assert rehearse(tell) == "process 1 wrote 'w2', unasked"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("w/c/3/0", None, "all that the process told of; it lacks ['w/c/3/0']"),
        ("w/zarr.json", None, "all that the process told of; it lacks ['w/zarr.json']"),
        ("w/c/0/0", b"x" * 64, "the process did not tell of: ['w/c/0/0']"),
    ],
)
def test_a_database_of_other_chunks_than_its_record_is_not_committed(key, value, said):
    async def spoil(database):
        await database.write(key, value)

    found = rehearse(spoil=spoil)
    assert found.startswith("the database of process 1 ")
    assert said in found


def test_contents_that_are_not_those_of_the_digests_are_damage_that_is_named():
    async def spoil(database):
        await database.write("w/c/3/0", b"x" * 64)

    arrays, problems = rehearse(spoil=spoil)
    assert arrays == 3
    assert len(problems) == 1
    assert "'w'" in problems[0]
