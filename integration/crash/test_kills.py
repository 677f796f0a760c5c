"""kill -9 at random instants: every acknowledged step is there, and nothing else is seen."""

import random
import time

import holdfast as hf

KILLS = 30
LONGEST_LIFE_S = 0.4


def live_and_die(zygote, mode, place, log, life):
    """Starts a worker, lets it save for a while, and kills it."""
    worker = zygote.start(mode, place, log)
    worker.wait_for("ready")
    time.sleep(life)
    worker.kill()
    said = log.read_text()
    assert "failed" not in said, said
    return [int(line) for line in said.split() if line != "ready"]


def test_no_acknowledged_step_is_lost_and_no_other_is_torn(
    zygote, tmp_path, assert_whole, left_in, record_property
):
    random.seed(20261124)
    run, log = tmp_path / "run", tmp_path / "log"
    lives = sorted(random.uniform(0, LONGEST_LIFE_S) for _ in range(KILLS))
    random.shuffle(lives)
    before, silent = -1, 0
    for life in lives:
        acknowledged = live_and_die(zygote, "steps", run, log, life)
        with hf.training.Checkpointer(run) as opened:
            steps = [entry.step for entry in opened.checkpoints]
            # A worker goes on after what it finds, which a kill may have left unacknowledged.
            least = max([before, *acknowledged])
            newest = steps[-1] if steps else -1
            assert least <= newest <= least + 1
            silent += newest > least
            before = newest
            for step in steps:
                assert_whole(opened.load(step), step)
    assert len(acknowledged) > KILLS / 4, "the workers hardly saved anything"
    # The next start cleans up: only steps are left, and none of them is damaged.
    with hf.training.Checkpointer(run) as last:
        last.save(10_000, {"number": 0})
    for entry in left_in(run):
        assert entry.isdecimal(), entry
        assert hf.verify(run / entry).ok
    told = f"{len(acknowledged)} acknowledged and {silent} more committed; none lost, none torn"
    record_property("outcome", f"local | kill -9 of a run that saves steps | {KILLS} | {told}")


def test_an_overwritten_checkpoint_is_always_the_old_or_the_new(
    zygote, tmp_path, assert_whole, left_in, sweep, record_property
):
    random.seed(20261125)
    place, log = tmp_path / "checkpoint", tmp_path / "log"
    before, silent = -1, 0
    for _ in range(KILLS):
        acknowledged = live_and_die(
            zygote, "overwrites", place, log, random.uniform(0, LONGEST_LIFE_S)
        )
        # A worker goes on after what it finds, which a kill may have left unacknowledged.
        least = max([before, *acknowledged])
        if least < 0 and not hf.is_checkpoint(place):
            continue
        found = hf.load(place)
        assert least <= found["number"] <= least + 1
        silent += found["number"] > least
        before = found["number"]
        assert_whole(found, found["number"])
        assert hf.verify(place).ok
    assert len(acknowledged) > KILLS / 4, "the workers hardly saved anything"
    sweep(tmp_path)
    left = [name for name in left_in(tmp_path) if ".displaced-" not in name]
    assert left == ["checkpoint", "log"]
    assert_whole(hf.load(place), hf.load(place)["number"])
    told = f"{len(acknowledged)} acknowledged and {silent} more committed; always one of the two"
    record_property("outcome", f"local | kill -9 of a run that overwrites | {KILLS} | {told}")
