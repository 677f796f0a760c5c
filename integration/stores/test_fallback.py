"""Falling back on every object store: over damaged bytes and over a missing object."""

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend


@pytest.fixture
def run(object_store):
    """A run with two steps."""
    with hf.training.Checkpointer(f"{object_store.root}/run") as checkpointer:
        for step in (1, 2):
            checkpointer.save(step, {"step": step, "w": np.full(4000, step)})
    return f"{object_store.root}/run"


async def files_of(backend, step, ending):
    return [i async for i in backend.walk(str(step)) if i.key.rpartition("/")[0].endswith(ending)]


def marks(run):
    listing = get_loop().run(open_backend(run).children("_quarantine"))
    return [info.key for info in listing.objects]


def test_a_damaged_array_is_passed_over_and_the_step_is_saved_anew(run):
    backend, loop = open_backend(run), get_loop()
    largest = max(loop.run(files_of(backend, 2, "state/d")), key=lambda info: info.size)
    content = bytearray(loop.run(backend.get(largest.key)))
    content[len(content) // 2] ^= 1
    loop.run(backend.put(largest.key, bytes(content)))
    with hf.training.Checkpointer(run) as again:
        assert again.load(fallback=True)["step"] == 1
        assert again.last_load.skipped[0].problem == "damaged"
        assert marks(run) == ["_quarantine/2"]
    with hf.training.Checkpointer(run) as third:
        assert (third.latest.step, list(third.quarantined)) == (1, [2])
        assert third.save(2, {"step": 2})
    assert marks(run) == []
    assert hf.training.Checkpointer(run).load(fallback=True)["step"] == 2


def test_a_missing_object_is_passed_over_until_it_is_there(run):
    backend, loop = open_backend(run), get_loop()
    (lost, *_) = loop.run(files_of(backend, 2, "state/_DIGESTS"))
    content = loop.run(backend.get(lost.key))
    loop.run(backend.delete(lost.key))
    again = hf.training.Checkpointer(run)
    assert again.load(fallback=True)["step"] == 1
    assert marks(run) == ["_quarantine/2"]
    loop.run(backend.put(lost.key, content))
    assert hf.training.Checkpointer(run).load()["step"] == 2
