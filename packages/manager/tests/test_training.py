"""training.Checkpointer over the memory backend: steps, policies, retention, errors."""

import math
import threading
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

import holdfast_checkpointer as hc
from holdfast_checkpointer.handlers.v1.registry import local_registry
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.preservation_policies import LatestN, PreserveAll
from holdfast_manager.policies.save_decision_policies import (
    FixedIntervalPolicy,
)
from holdfast_storage import get_loop, open_backend
from holdfast_storage.errors import IncompleteCheckpointError
from holdfast_storage.testing.faulty import Fault, FaultyBackend


@pytest.fixture
def run():
    return f"memory://run-{uuid.uuid4().hex}/job"


def state(value):
    return {"w": jnp.full((4,), float(value)), "step": value}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def test_a_saved_step_is_listed_loaded_and_latest(run):
    with training.Checkpointer(run) as checkpointer:
        assert checkpointer.latest is None
        assert checkpointer.save(3, state(3))
        assert checkpointer.latest.step == 3
        assert checkpointer.load()["step"] == 3
    with training.Checkpointer(run) as again:
        assert steps(again) == [3]
        np.testing.assert_array_equal(again.load(3)["w"], np.full(4, 3.0))


def test_opening_a_run_writes_nothing(run):
    training.Checkpointer(run, custom_metadata={"a": 1}).close()
    assert training.Checkpointer(run).root_metadata().custom_metadata == {}


def test_a_background_save_is_listed_only_once_committed(run):
    checkpointer = training.Checkpointer(run)
    response = checkpointer.save_async(1, {"w": np.zeros(100_000)})
    if not response.done():
        assert steps(checkpointer) == [] or response.done()
    checkpointer.wait()
    assert steps(checkpointer) == [1]
    assert not checkpointer.is_saving_in_progress()
    checkpointer.close()


def test_a_declined_save_says_why_and_changes_nothing(run):
    policy = FixedIntervalPolicy(10)
    with training.Checkpointer(run, save_decision_policy=policy) as checkpointer:
        assert checkpointer.save(10, state(10)).saved
        declined = checkpointer.save(11, state(11))
        assert not declined
        assert "FixedIntervalPolicy" in declined.reason
        older = checkpointer.save_async(0, state(0))
        assert not older
        assert "not newer than the latest, 10" in older.reason
        assert (older.saved, older.result().saved) == (False, False)
        assert steps(checkpointer) == [10]


def test_an_overwrite_that_the_policy_declines_leaves_the_step(run):
    policy = FixedIntervalPolicy(10)
    with training.Checkpointer(run, save_decision_policy=policy) as checkpointer:
        checkpointer.save(10, state(10))
        checkpointer.save(11, state(11), force=True)
        assert not checkpointer.save(10, state(99), overwrite=True)
        assert checkpointer.load(10)["step"] == 10


def test_an_existing_step_is_refused_and_overwritten_on_request(run):
    with training.Checkpointer(run) as checkpointer:
        checkpointer.save(1, state(1))
        with pytest.raises(StepAlreadyExistsError, match="overwrite=True"):
            checkpointer.save(1, state(2))
        assert checkpointer.save(1, state(2), overwrite=True)
        assert checkpointer.load(1)["step"] == 2
        assert checkpointer.save(2, state(3))


def test_an_unknown_step_is_refused_with_those_there_are(run):
    with training.Checkpointer(run) as checkpointer:
        with pytest.raises(StepNotFoundError, match="no step is committed"):
            checkpointer.load()
        checkpointer.save(1, state(1))
        with pytest.raises(FileNotFoundError, match="committed steps: 1"):
            checkpointer.load(5)


@pytest.mark.parametrize("step", [-1, 1.5, "3", True, None])
def test_what_is_no_step_is_refused(run, step):
    with training.Checkpointer(run) as checkpointer:
        with pytest.raises((TypeError, ValueError), match="a step is an integer"):
            checkpointer.save(step, state(1))
        assert steps(checkpointer) == []


def test_numpy_integers_are_steps(run):
    with training.Checkpointer(run) as checkpointer:
        assert checkpointer.save(np.int64(4), state(4))
        assert checkpointer.load(np.int32(4))["step"] == 4


def test_latest_n_keeps_the_newest_after_the_commit(run):
    keep = LatestN(2)
    with training.Checkpointer(run, preservation_policy=keep) as checkpointer:
        for step in range(5):
            checkpointer.save(step, state(step))
        checkpointer.wait()
        assert steps(checkpointer) == [3, 4]
    with training.Checkpointer(run) as again:
        assert steps(again) == [3, 4]


def test_zero_means_zero_but_the_newest_stays(run):
    with training.Checkpointer(run, preservation_policy=LatestN(0)) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state(step))
        checkpointer.wait()
        assert steps(checkpointer) == [2]


def test_preserve_all_keeps_all(run):
    with training.Checkpointer(run, preservation_policy=PreserveAll()) as checkpointer:
        for step in range(3):
            checkpointer.save(step, state(step))
        checkpointer.wait()
        assert steps(checkpointer) == [0, 1, 2]


def test_metrics_and_custom_metadata_come_back(run):
    with training.Checkpointer(run, custom_metadata={"team": "a"}) as checkpointer:
        checkpointer.save(1, state(1), metrics={"loss": 0.25}, custom_metadata={"note": "x"})
    with training.Checkpointer(run) as again:
        assert again.latest.metrics == {"loss": 0.25}
        assert again.metadata(1).custom_metadata == {"note": "x"}
        assert again.root_metadata().custom_metadata == {"team": "a"}


def test_bad_metrics_are_refused_before_anything_is_written(run):
    with training.Checkpointer(run) as checkpointer:
        with pytest.raises(ValueError, match="loss"):
            checkpointer.save(1, state(1), metrics={"loss": object()})
        with pytest.raises(ValueError, match="custom_metadata"):
            checkpointer.save(1, state(1), custom_metadata=[1])
        assert steps(checkpointer) == []


def test_a_loss_that_is_no_number_costs_no_step(run):
    with training.Checkpointer(run) as checkpointer:
        assert checkpointer.save(1, state(1), metrics={"loss": math.nan, "norm": [math.inf]})
    found = training.Checkpointer(run).latest.metrics
    assert math.isnan(found["loss"])
    assert found["norm"] == [math.inf]


def test_an_unsupported_leaf_is_refused_and_the_next_save_works(run):
    with training.Checkpointer(run) as checkpointer:
        with pytest.raises(ValueError, match="thing"):
            checkpointer.save(1, {"thing": object()})
        assert checkpointer.save(1, state(1))


def test_reload_sees_what_another_process_committed(run):
    first, second = training.Checkpointer(run), training.Checkpointer(run)
    first.save(1, state(1))
    assert second.latest is None
    second.reload()
    assert second.latest.step == 1
    first.save(2, state(2))
    assert second.load(2)["step"] == 2  # asked for by number: looked for again
    first.close()
    second.close()


def test_the_handle_of_a_save_tells_what_is_known_and_hides_no_failure(monkeypatch, run):
    view = FaultyBackend(open_backend(run))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    with training.Checkpointer(run) as checkpointer:
        view.faults = {1: Fault.PAUSE}
        response = checkpointer.save_async(1, state(1))
        assert (bool(response), response.step, response.saved, response.reason) == (
            True,
            1,
            None,
            "",
        )
        get_loop().call_soon(view.resume.set)
        response.wait()
        assert (bool(response), response.saved, response.reason) == (True, True, "")
        with training.Checkpointer(run) as other:
            assert other.save(2, state(2))
        failed = checkpointer.save_async(2, state(20))
        failed.wait()
        assert (bool(failed), failed.saved) == (True, False)
        assert failed.reason.startswith("StepAlreadyExistsError: step 2 ")
        with pytest.raises(FileExistsError):  # to look at it was not to be told
            checkpointer.wait()


def test_a_failed_background_save_is_told_once_at_the_next_natural_point(run):
    first, second = training.Checkpointer(run), training.Checkpointer(run)
    first.save(1, state(1))
    response = second.save_async(1, state(2))  # second does not know that 1 exists
    response.wait()
    with pytest.raises(FileExistsError):
        second.wait()
    second.wait()
    assert second.save(2, state(2))
    first.close()
    second.close()


def test_a_failure_that_the_response_told_is_not_told_again(run):
    first, second = training.Checkpointer(run), training.Checkpointer(run)
    first.save(1, state(1))
    with pytest.raises(FileExistsError):
        second.save(1, state(2))
    second.wait()
    first.close()
    second.close()


def test_a_closed_checkpointer_refuses_to_save(run):
    checkpointer = training.Checkpointer(run)
    checkpointer.close()
    checkpointer.close()
    with pytest.raises(ValueError, match="closed"):
        checkpointer.save(1, state(1))


def test_an_exception_in_the_with_block_is_not_masked(run):
    first = training.Checkpointer(run)
    first.save(1, state(1))
    other = training.Checkpointer(run)
    first.save(2, state(2))
    with pytest.raises(ZeroDivisionError), other:
        other.save_async(2, state(3))
        raise ZeroDivisionError
    first.close()


def test_threads_may_save_different_steps(run):
    checkpointer = training.Checkpointer(run)
    failures = []

    def save(step):
        try:
            checkpointer.save(step, state(step), force=True)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(step,)) for step in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert steps(checkpointer) == list(range(8))
    checkpointer.close()


def test_stray_folders_and_files_are_not_steps(run):
    hc.save(f"{run}/notes", {"a": 1})
    with training.Checkpointer(run) as checkpointer:
        assert steps(checkpointer) == []
        checkpointer.save(1, state(1))
        checkpointer.reload()
        assert steps(checkpointer) == [1]


def test_instance_options_beat_the_entered_context(run):
    own = hc.options.Context(asynchronous=hc.options.AsyncOptions(timeout_secs=1000))
    entered = hc.Context(asynchronous=hc.options.AsyncOptions(timeout_secs=1e-9))
    with entered, training.Checkpointer(run, context=own) as checkpointer:
        assert checkpointer.save(1, state(1))


def test_a_copy_that_is_not_whole_is_never_the_latest(tmp_path, caplog):
    with training.Checkpointer(tmp_path / "run") as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(step, state(step))
    for step in ("2", "3"):
        next((tmp_path / "run" / step / "state" / "d").iterdir()).unlink()
    with training.Checkpointer(tmp_path / "run") as opened:
        assert opened.latest.step == 1
        assert opened.load()["step"] == 1
        assert "is left out" in caplog.text
        assert list(opened.quarantined) == [2, 3]
        with pytest.raises(IncompleteCheckpointError):
            opened.load(3)
        assert opened.save(3, state(4))
        assert opened.load()["step"] == 4


def test_a_handler_of_a_user_s_takes_its_snapshot_before_the_save_returns(tmp_path):
    class Holder:
        value = 1

    class HolderHandler:
        async def save(self, directory, checkpointable):
            taken = str(checkpointable.value)

            async def write():
                (await directory.await_creation() / "value").write_text(taken)

            return write()

        async def load(self, directory, abstract_checkpointable=None):
            async def read():
                return int((directory / "value").read_text())

            return read()

        def is_handleable(self, checkpointable):
            return isinstance(checkpointable, Holder)

        def is_abstract_handleable(self, abstract_checkpointable):
            return None

    registry = local_registry().add(HolderHandler, checkpointable_name="held")
    context = hc.Context(checkpointables=hc.options.CheckpointablesOptions(registry=registry))
    held = Holder()
    with training.Checkpointer(tmp_path / "run", context=context) as checkpointer:
        response = checkpointer.save_async(1, held, checkpointable_name="held")
        held.value = 2
        assert response.result()
        assert checkpointer.load(1, checkpointable_name="held") == 1
