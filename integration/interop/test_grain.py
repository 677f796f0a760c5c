"""A real data iterator, which saves itself, through our functions and Orbax's."""

import grain.python as grain
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

import holdfast as hf


def dataset():
    return grain.MapDataset.range(100).shuffle(seed=3).map(lambda x: x * 2).to_iter_dataset()


def loader():
    return grain.DataLoader(
        data_source=np.arange(100),
        sampler=grain.IndexSampler(100, shuffle=True, seed=3, num_epochs=1),
    )


@pytest.fixture(params=["memory", "local"])
def place(request, tmp_path):
    return str(tmp_path / "c") if request.param == "local" else f"memory://{tmp_path.name}/c"


@pytest.mark.parametrize("make", [dataset, loader])
def test_an_iterator_goes_on_where_it_was_saved(place, make):
    iterator = iter(make())
    seen = [next(iterator) for _ in range(7)]
    response = hf.save_checkpointables_async(place, {"data": iterator, "state": {"step": 7}})
    expected = [next(iterator) for _ in range(20)]  # while it is being saved
    response.result()
    fresh = iter(make())
    found = hf.load_checkpointables(place, {"data": fresh, "state": None})
    assert found["data"] is fresh
    assert found["state"] == {"step": 7}
    assert [next(fresh) for _ in range(20)] == expected
    assert expected[0] not in seen
    assert hf.verify(place).ok


def test_orbax_reads_the_iterator_that_we_saved_and_the_reverse(tmp_path):
    iterator = iter(dataset())
    for _ in range(7):
        next(iterator)
    hf.save_checkpointables(tmp_path / "ours", {"data": iterator, "state": {"step": np.ones(2)}})
    ocp.save_checkpointables(tmp_path / "theirs", {"data": iterator, "state": {"n": np.ones(2)}})
    expected = next(iterator)
    fresh = iter(dataset())
    ocp.load_checkpointables(tmp_path / "ours", {"data": fresh})
    assert next(fresh) == expected
    fresh = iter(dataset())
    assert hf.load_checkpointables(tmp_path / "theirs", {"data": fresh})["data"] is fresh
    assert next(fresh) == expected
    assert set(hf.load_checkpointables(tmp_path / "theirs")) == {"state"}
