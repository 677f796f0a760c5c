"""What a job asks for grows with its processes, by a small constant, and with nothing else."""

import pytest

from integration.scale import model


@pytest.mark.parametrize("processes", [2, 50, 300])
async def test_messages_and_requests_are_a_few_for_each_process(processes):
    saved, store = await model.save(processes)
    messages, requests = sum(saved.messages.values()), sum(saved.requests.values())
    assert messages <= 9 * processes + 20, saved
    assert requests <= 4 * processes + 30, saved
    listings = saved.requests["walk"] + saved.requests["children"]
    assert listings <= 6, saved
    loaded = await model.load(processes, store)
    assert sum(loaded.requests.values()) <= 10 * loaded.processes, loaded
    assert loaded.requests["walk"] == 1
