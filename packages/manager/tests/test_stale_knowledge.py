"""A process that does not know yet what another one, or a person, removed from the run."""

import shutil

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_manager.policies.preservation_policies import BestN, LatestN
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import read_record


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def save(place, *numbers):
    with training.Checkpointer(place) as run:
        for number in numbers:
            assert run.save(number, state(number))


def uncommit(place, *numbers):
    """As a process of long ago would, which knows of no lease."""

    async def retire():
        backend = open_backend(place)
        strategy = await backend.commit_strategy()
        for number in numbers:
            stored = await read_record(backend, str(number))
            await strategy.retire(str(number), expected=stored.attempt)

    get_loop().run(retire())


@pytest.mark.parametrize("gone", [[3], [2, 3], [1, 2, 3]], ids=str)
def test_the_newest_that_is_there_stays_though_a_newer_one_was_known(place, gone):
    save(place, 0, 1, 2, 3)
    run = training.Checkpointer(place, preservation_policy=LatestN(1))
    assert steps(run) == [0, 1, 2, 3]
    uncommit(place, *gone)
    newest = max({0, 1, 2, 3} - set(gone))
    assert run.save(0, state(10), force=True, overwrite=True)
    run.wait()
    run.close()
    opened = training.Checkpointer(place)
    assert steps(opened) == [newest]
    assert opened.load()["w"][0] == (newest or 10)


def test_what_a_person_removed_is_not_kept_in_place_of_what_is_there(tmp_path):
    save(tmp_path / "run", 1, 2, 3, 4)
    run = training.Checkpointer(tmp_path / "run", preservation_policy=LatestN(3))
    assert [entry.commit_timestamp_nsecs > 0 for entry in run.checkpoints] == [True] * 4
    shutil.rmtree(tmp_path / "run" / "3")
    assert run.save(5, state(5))
    run.wait()
    assert steps(run) == [2, 4, 5]
    run.close()
    assert steps(training.Checkpointer(tmp_path / "run")) == [2, 4, 5]


def test_a_step_that_another_process_removed_is_missing_and_not_removed_twice(place):
    save(place, 1, 2, 3)
    run = training.Checkpointer(place)
    assert steps(run) == [1, 2, 3]
    uncommit(place, 2, 3)
    with pytest.raises(FileNotFoundError):
        run.delete(3)
    assert run.delete(2, missing_ok=True) is False
    assert steps(run) == [1]
    run.close()


def test_a_step_that_is_gone_has_no_metrics_and_does_not_keep_old_steps_from_going(place):
    with training.Checkpointer(place) as first:
        for number in (1, 2, 3, 4):
            first.save(number, state(number), metrics={"quality": number})
    best = BestN(get_metric_fn=lambda metrics: metrics["quality"], n=1)
    run = training.Checkpointer(place, preservation_policy=best)
    uncommit(place, 1, 3)
    assert run.save(5, state(5), metrics={"quality": 0})
    run.wait()
    assert steps(training.Checkpointer(place)) == [4, 5]
    assert run.best.step == 4
    run.close()
