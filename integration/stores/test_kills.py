"""kill -9 of the writer at random instants, on each kind of object store."""

import random
import time

import numpy as np
import pytest

import holdfast as hf
from holdfast_storage import get_loop, open_backend

KILLS = 11  # twice: 22 on each store
LONGEST_LIFE_S = 0.8


@pytest.fixture
def live_and_die(zygote, object_store, tmp_path):
    """Starts a worker, lets it save for a while, kills it; what it acknowledged so far."""
    log = tmp_path / "log"

    def live(mode, place):
        worker = zygote.start(mode, place, log, env=object_store.env)
        worker.wait_for("ready")
        time.sleep(random.uniform(0, LONGEST_LIFE_S))
        assert "failed" not in log.read_text(), log.read_text()
        worker.kill()
        said = log.read_text()
        assert "failed" not in said, said
        return [int(line) for line in said.split() if line != "ready"]

    return live


def assert_whole(found, number):
    assert found["number"] == number
    assert (found["numpy"] == np.full(60_000, number)).all()
    assert (np.asarray(found["jax"]) == number).all()


def left_in(place):
    """The names one level below a place, after a sweep of everything that is dead."""
    backend = open_backend(place)

    async def sweep_and_list():
        strategy = await backend.commit_strategy()
        strategy._grace_s = 0.0
        await strategy.sweep("", older_than=0.0)
        listing = await backend.children("")
        return [*listing.prefixes, *(info.key for info in listing.objects)]

    return get_loop().run(sweep_and_list())


def test_no_acknowledged_step_is_lost_and_no_other_is_torn(
    live_and_die, object_store, request, record_property
):
    random.seed(20261126)
    run = f"{object_store.root}/run"
    before, acknowledged, silent = -1, [], 0
    for _ in range(KILLS):
        acknowledged = live_and_die("steps", run)
        with hf.training.Checkpointer(run) as opened:
            steps = [entry.step for entry in opened.checkpoints]
            least = max([before, *acknowledged])
            newest = steps[-1] if steps else -1
            # A worker goes on after what it finds, which a kill may have left unacknowledged.
            assert least <= newest <= least + 1
            silent += newest > least
            before = newest
            for step in steps:
                assert_whole(opened.load(step), step)
    assert acknowledged, "the workers saved nothing"
    for name in left_in(run):
        if not name.startswith((".", "_", "metadata")):
            assert name.isdecimal(), name
    with hf.training.Checkpointer(run) as last:
        assert [e.step for e in last.checkpoints]
        for entry in last.checkpoints:
            assert hf.verify(entry.path).ok
    kind = request.node.callspec.params["object_store"]
    told = f"{len(acknowledged)} acknowledged and {silent} more committed; none lost, none torn"
    record_property("outcome", f"{kind} | kill -9 of a run that saves steps | {KILLS} | {told}")


def test_an_overwritten_checkpoint_is_always_the_old_or_the_new(
    live_and_die, object_store, request, record_property
):
    random.seed(20261127)
    place = f"{object_store.root}/place/checkpoint"
    before, acknowledged, silent = -1, [], 0
    for _ in range(KILLS):
        acknowledged = live_and_die("overwrites", place)
        least = max([before, *acknowledged])
        if least < 0 and not hf.is_checkpoint(place):
            continue
        found = hf.load(place)
        assert least <= found["number"] <= least + 2
        silent += found["number"] > least
        before = found["number"]
        assert_whole(found, before)
        assert hf.verify(place).ok
    assert acknowledged, "the workers saved nothing"
    left = [name for name in left_in(f"{object_store.root}/place") if not name.startswith(".")]
    assert left == ["checkpoint"]
    assert_whole(hf.load(place), hf.load(place)["number"])
    kind = request.node.callspec.params["object_store"]
    told = f"{len(acknowledged)} acknowledged and {silent} more committed; always one of the two"
    record_property("outcome", f"{kind} | kill -9 of a run that overwrites | {KILLS} | {told}")
