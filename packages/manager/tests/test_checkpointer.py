"""The rest of training.Checkpointer: several items, background loads, delete, cancel."""

import asyncio
import concurrent.futures
import json
import threading
import uuid

import jax.numpy as jnp
import numpy as np
import pytest

from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.options import AsyncOptions, Context
from holdfast_manager import training
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.save_decision_policies import FixedIntervalPolicy
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import PointerCommit
from holdfast_storage.errors import TransientStorageError
from holdfast_storage.testing.faulty import FaultyBackend


def state(value):
    return {"w": jnp.full((4,), float(value)), "step": value}


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def test_several_items_are_one_step(place):
    items = {"params": {"w": np.ones(3)}, "config": JsonSave({"layers": 3})}
    with training.Checkpointer(place) as run:
        saved = run.save_checkpointables(1, items, metrics={"loss": 0.5})
        assert saved
        assert saved.step == 1
        back = run.load_checkpointables(1)
        assert set(back) == {"params", "config"}  # metrics are asked of the step
        assert back["config"] == {"layers": 3}
        np.testing.assert_array_equal(back["params"]["w"], np.ones(3))
        one = run.load_checkpointables(1, {"params": {"w": np.zeros(3)}})
        assert set(one) == {"params"}
        assert run.latest.metrics == {"loss": 0.5}
        with pytest.raises(KeyError, match="optimizer"):
            run.load_checkpointables(1, {"optimizer": None})
        described = run.checkpointables_metadata()
        assert described.step == 1
        assert described.metrics == {"loss": 0.5}
        assert described.metadata["params"]["w"].shape == (3,)
        assert set(described.metadata) == {"params", "config"}
        np.testing.assert_array_equal(
            run.load_checkpointables_async(1, described).result()["params"]["w"], np.ones(3)
        )


def test_one_item_of_a_step_is_deleted_and_the_step_stays(place):
    with training.Checkpointer(place) as run:
        run.save_checkpointables(1, {"a": {"x": np.ones(2)}, "b": {"x": np.zeros(2)}})
        assert run.delete(1, checkpointable_name="b")
        assert steps(run) == [1]
        assert set(run.load_checkpointables(1)) == {"a"}
        assert not run.delete(1, checkpointable_name="b", missing_ok=True)
        with pytest.raises(ValueError, match="a/b"):
            run.delete(1, checkpointable_name="a/b")


def test_several_items_are_saved_in_the_background(place):
    run = training.Checkpointer(place, save_decision_policy=FixedIntervalPolicy(2))
    response = run.save_checkpointables_async(2, {"a": {"x": np.zeros(3)}})
    assert response
    assert response.result().saved
    assert response.result() == True  # noqa: E712 - as programs compare Orbax's bool
    declined = run.save_checkpointables_async(3, {"a": {"x": np.zeros(3)}})
    assert not declined
    assert "FixedIntervalPolicy" in declined.reason
    assert declined.result() == False != response.result()  # noqa: E712
    with pytest.raises(StepAlreadyExistsError):
        run.save_checkpointables(2, {"a": {"x": np.zeros(3)}})
    run.close()


@pytest.mark.parametrize("items", [{}, {"metrics": {"a": 1}}, {"a/b": {"c": 1}}, [1], {"x": None}])
def test_items_that_cannot_be_saved_are_refused_before_anything_is_written(place, items):
    run = training.Checkpointer(place)
    with pytest.raises(ValueError):
        run.save_checkpointables(1, items)
    assert get_loop().run(open_backend(place).children("")).prefixes == ()
    assert run.save(1, state(1))
    run.close()


def test_a_load_runs_in_the_background_and_an_unknown_step_raises_at_once(place):
    with training.Checkpointer(place) as run:
        with pytest.raises(StepNotFoundError):
            run.load_async()
        run.save(1, state(1))
        run.save(2, state(2))
        assert run.load_async().result()["step"] == 2
        assert run.load_async(run.checkpoints[0]).result()["step"] == 1
        assert run.load_async(run.metadata(1)).result()["step"] == 1
        with pytest.raises(StepNotFoundError, match="committed steps: 1, 2"):
            run.load_checkpointables_async(3)


def test_metadata_describes_a_step_and_is_a_target(place):
    with training.Checkpointer(place) as run:
        run.save(7, state(7), metrics={"loss": 1.5}, custom_metadata={"note": "x"})
        found = run.metadata()
        assert (found.step, found.metrics, found.custom_metadata) == (
            7,
            {"loss": 1.5},
            {"note": "x"},
        )
        assert found.metadata["w"].shape == (4,)
        assert found.time == found.commit_timestamp
        assert run.load(7, found)["step"] == 7
        assert run.root_metadata() == training.RootMetadata(run.directory, {})


def test_a_deleted_step_is_gone_here_and_elsewhere_the_newest_too(place):
    with training.Checkpointer(place) as run:
        for step in (1, 2, 3):
            run.save(step, state(step))
        assert run.delete(2) is True
        assert steps(run) == [1, 3]
        assert steps(training.Checkpointer(place)) == [1, 3]
        response = run.delete_async(run.latest)
        assert steps(run) == [1]  # at once
        assert response.result() is True
        assert run.latest.step == 1
        with pytest.raises(StepNotFoundError, match="committed steps: 1"):
            run.delete(3)
        assert run.delete(3, missing_ok=True) is False
        with pytest.raises(ValueError, match="only one"):
            run.delete(1, checkpointable_name="state")
        assert run.save(2, state(20))  # the number is free again
        assert run.load(2)["step"] == 20


def test_a_delete_waits_for_the_running_save(place):
    with training.Checkpointer(place) as run:
        run.save_async(1, {"w": np.zeros(300_000)})
        assert run.delete(1)
        assert steps(run) == []
        run.reload()
        assert steps(run) == []


class Refusing(FaultyBackend):
    """A store that refuses to write some key, while it is told to."""

    refused = None

    async def put(self, key, data, **how):
        if self.refused is not None and self.refused in key:
            raise TransientStorageError("injected: 503", key=key, root=self.root)
        return await super().put(key, data, **how)


def test_a_failed_delete_is_told_once_and_the_step_is_listed_again(monkeypatch):
    url = f"memory://delete-{uuid.uuid4().hex}/job"
    view = Refusing(open_backend(url))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    run = training.Checkpointer(url)
    run.save(1, state(1))
    view.refused = "collecting"
    run.delete_async(1).wait()
    assert steps(run) == [1]
    with pytest.raises(TransientStorageError, match="503"):
        run.wait()
    run.wait()
    assert run.load(1)["step"] == 1
    view.refused = None
    assert run.delete(1)
    run.close()


class Slow(FaultyBackend):
    """A store whose puts of array data wait until they are let go."""

    def __init__(self, inner):
        super().__init__(inner)
        self.gate = threading.Event()
        self.waiting = threading.Event()

    async def put(self, key, data, **how):
        if key.endswith("_CHECKPOINT_METADATA"):
            self.waiting.set()
            while not self.gate.is_set():
                await asyncio.sleep(0.001)
        return await super().put(key, data, **how)


@pytest.fixture
def slow(monkeypatch):
    """A run whose saves stop before they are whole, until `gate` is set."""
    url = f"memory://slow-{uuid.uuid4().hex}/job"
    view = Slow(open_backend(url))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    view.url = url
    yield view
    view.gate.set()


def test_a_cancelled_save_leaves_nothing_and_the_next_one_works(slow):
    run = training.Checkpointer(slow.url)
    response = run.save_async(1, state(1))
    slow.waiting.wait()
    assert run.is_saving_in_progress()
    assert steps(run) == []
    assert run.cancel() is True
    assert not run.is_saving_in_progress()
    with pytest.raises(concurrent.futures.CancelledError):
        response.result()
    assert get_loop().run(open_backend(slow.url).children("")).prefixes == ("_lease",)
    slow.gate.set()
    assert run.cancel() is False
    assert run.save(1, state(1))
    assert run.cancel(1) is True  # committed: removed
    assert run.cancel(1) is False
    assert steps(run) == []
    run.close()


def test_a_step_that_is_being_saved_counts_as_the_latest_for_the_decision(slow):
    run = training.Checkpointer(slow.url, save_decision_policy=FixedIntervalPolicy(1))
    first = run.save_async(5, state(5))
    slow.waiting.wait()
    assert "is being saved" in run.save_async(4, state(4)).reason
    assert not run.should_save(5)
    assert run.should_save(6)
    again = concurrent.futures.ThreadPoolExecutor(1).submit(run.save_async, 5, state(50))
    slow.gate.set()
    with pytest.raises(StepAlreadyExistsError):  # it waited to see what became of the first
        again.result()
    assert first.result().saved
    assert run.load(5)["step"] == 5
    run.close()


def test_a_save_returns_before_the_storage_answers(slow):
    run = training.Checkpointer(slow.url)
    response = run.save_async(1, state(1))
    assert not response.done()
    slow.gate.set()
    assert response.result().saved
    run.close()


def test_leftovers_are_looked_for_at_once_if_asked(tmp_path):
    url = f"memory://left-{uuid.uuid4().hex}/job"

    async def leave():
        backend = open_backend(url)
        strategy = PointerCommit(backend)
        txn = await strategy.begin("3")
        mark = f"{txn.staging}/_ATTEMPT.json"
        data = await backend.get(mark)
        said = json.loads(data) | {"pid": 2**22 + 7, "process_start": "1"}
        await backend.put(mark, json.dumps(said).encode())
        await backend.put("mine/x", b"foreign")

    get_loop().run(leave())
    training.Checkpointer(url).close()
    backend = open_backend(url)
    assert len(get_loop().run(backend.children("3")).prefixes) == 1
    training.Checkpointer(url, cleanup_tmp_directories=True).close()
    assert get_loop().run(backend.children("3")).prefixes == ()
    assert get_loop().run(backend.get("mine/x")) == b"foreign"


def test_what_is_not_offered_is_refused_in_words_and_the_rest_accepted(place):
    with pytest.raises(NotImplementedError, match="standard library"):
        training.Checkpointer(place, logger=object())
    with pytest.raises(TypeError, match="should_save"):
        training.Checkpointer(place, save_decision_policy=lambda step: True)
    with pytest.raises(TypeError, match="should_preserve"):
        training.Checkpointer(place, preservation_policy=5)
    with training.Checkpointer(place, lightweight_initialize=True) as run:
        run.save(1, state(1), metrics={"a": 1})
    light = training.Checkpointer(place, lightweight_initialize=True)
    assert light.latest.metrics == {"a": 1}
    assert light.latest.time.year >= 2024


def test_a_forced_save_asks_no_policy_and_the_list_stays_in_order(place):
    class Never:
        def should_save(self, step, previous_steps, *, context):
            raise AssertionError("asked")

    with training.Checkpointer(place, save_decision_policy=Never()) as run:
        run.save(5, state(5), force=True)
        run.save(3, state(3), force=True)
        assert steps(run) == [3, 5]
        assert run.latest.step == 5
        assert not run.save(4, state(4))  # not newer: no policy is asked


def test_what_people_print_says_what_it_is(tmp_path):
    place = str(tmp_path / "run")
    with training.Checkpointer(place) as run:
        assert repr(run) == f"training.Checkpointer({place!r})"
        assert not (tmp_path / "run").exists()
        response = run.save_async(3, {"step": 3})
        response.result()
        assert repr(response) == f"<SaveResponse of the save of step 3 in {place}: done>"
        declined = run.save_async(2, {"step": 2})
        assert repr(declined).startswith("<SaveResponse: step 2 is not newer than the latest, 3")
        load = run.load_async(3)
        load.result()
        assert repr(load) == f"<LoadResponse of the load from {place}/3: done>"
    (tmp_path / "run/7/x").mkdir(parents=True)
    failed = training.Checkpointer(place).save_async(7, {"step": 7})
    assert isinstance(failed.exception(), FileExistsError)
    assert repr(failed).endswith("failed with DestinationOccupiedError>")


def test_a_cancellation_that_comes_after_the_commit_says_so(place, monkeypatch):
    run = training.Checkpointer(place)
    committed, go_on = threading.Event(), threading.Event()
    note = run._run.directory.note_commit

    async def slow(entry):
        committed.set()
        while not go_on.is_set():
            await asyncio.sleep(0.001)
        await note(entry)

    monkeypatch.setattr(run._run.directory, "note_commit", slow)
    response = run.save_async(1, state(1))
    committed.wait()
    assert response.cancel()  # it was asked; the result says what became of it
    get_loop().run(asyncio.sleep(0))
    go_on.set()
    assert response.result().saved
    assert run.cancel() is False
    assert steps(run) == steps(training.Checkpointer(place)) == [1]
    run.close()


@pytest.mark.parametrize("call", ["save", "delete", "wait", "close"])
def test_a_callback_that_would_wait_for_its_own_save_is_refused(place, call):
    told = []

    def after():
        calls = {
            "save": lambda: run.save(2, state(2)),
            "delete": lambda: run.delete(1),
            "wait": run.wait,
            "close": run.close,
        }
        with pytest.raises(RuntimeError, match="cannot wait for it"):
            calls[call]()
        told.append(run.latest.step)

    context = Context(asynchronous=AsyncOptions(post_finalization_callback=after))
    run = training.Checkpointer(place, context=context)
    assert run.save_async(1, state(1)).result(timeout=60).saved
    assert told == [1]
    assert run.save_async(3, state(3)).result(timeout=60).saved
    run.close()
