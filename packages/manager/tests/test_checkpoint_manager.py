"""CheckpointManager: saving, listing and restoring steps with the interface of Orbax's v0."""

import asyncio
import threading
import uuid

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import multihost_utils

from holdfast_checkpointer.args import Composite, JsonSave, StandardRestore, StandardSave
from holdfast_checkpointer.options import AsyncOptions, Context
from holdfast_manager import training
from holdfast_manager.checkpoint_manager import (
    AbstractCheckpointManager,
    CheckpointManager,
    CheckpointManagerOptions,
    StepMetadata,
)
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError
from holdfast_manager.policies.save_decision_policies import ContinuousCheckpointingPolicy
from holdfast_storage import get_loop, open_backend
from holdfast_storage.errors import (
    DamagedCheckpointError,
    TransientStorageError,
    UnsupportedOperationError,
)
from holdfast_storage.testing.faulty import FaultyBackend


def tree(value):
    return StandardSave({"w": jnp.full((4,), float(value)), "step": value})


def keys_below(place):
    async def every():
        return sorted([info.key async for info in open_backend(place).walk("")])

    return get_loop().run(every())


@pytest.mark.parametrize("background", [True, False])
def test_steps_are_saved_listed_and_restored(place, background):
    options = CheckpointManagerOptions(enable_async_checkpointing=background)
    with CheckpointManager(place, options=options) as manager:
        assert isinstance(manager, AbstractCheckpointManager)
        assert (manager.all_steps(), manager.latest_step(), manager.best_step()) == ([], None, None)
        with pytest.raises(StepNotFoundError):
            manager.restore(None)
        for step in (0, np.int64(1), 2):
            assert manager.save(step, args=tree(int(step)))
        if not background:
            assert manager.all_steps() == [0, 1, 2]
        back = manager.restore(2)  # waits for the save that runs
        assert isinstance(back["w"], jnp.ndarray)
        assert back["step"] == 2
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 1, 2]
        assert manager.latest_step() == manager.best_step() == 2
        target = {"w": np.zeros(4, np.float32), "step": 0}
        assert manager.restore(np.int32(1), args=StandardRestore(target))["step"] == 1
        assert manager.restore(None, args=StandardRestore(target))["step"] == 2
        with pytest.raises(FileNotFoundError, match="committed steps: 0, 1, 2"):
            manager.restore(3)
        assert not manager.is_saving_in_progress()
    other = CheckpointManager(place)
    assert other.all_steps() == [0, 1, 2]
    assert other.restore(0)["step"] == 0


def test_a_result_is_true_or_says_why_not(place):
    with CheckpointManager(place, options=CheckpointManagerOptions(2)) as manager:
        assert manager.should_save(1)  # the first step of a run
        saved = manager.save(1, args=tree(1))
        assert saved.saved
        assert saved == True  # noqa: E712 - as programs compare Orbax's bool
        assert not saved.reason
        declined = manager.save(3, args=tree(3))
        assert declined == False  # noqa: E712
        assert "FixedIntervalPolicy" in declined.reason
        assert not manager.should_save(3)
        assert manager.save(4, args=tree(4))
        assert manager.save(5, args=tree(5), force=True)
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 4, 5]


@pytest.mark.parametrize(
    ("step", "kind"),
    [(-1, ValueError), (np.int64(-3), ValueError), (1.5, TypeError), (True, TypeError)],
)
def test_what_is_no_step_is_refused(place, step, kind):
    with CheckpointManager(place) as manager:
        for call in (
            lambda: manager.save(step, args=tree(1)),
            lambda: manager.restore(step),
            lambda: manager.delete(step),
            lambda: manager.metrics(step),
            lambda: manager.should_save(step),
        ):
            with pytest.raises(kind, match="integer >= 0"):
                call()
    assert keys_below(place) == []


@pytest.mark.parametrize("background", [True, False])
def test_a_step_that_exists_is_not_replaced_and_nothing_is_wedged(place, background):
    always = ContinuousCheckpointingPolicy()
    options = CheckpointManagerOptions(
        enable_async_checkpointing=background, save_decision_policy=always
    )
    with CheckpointManager(place, options=options) as manager:
        manager.save(1, args=tree(1))
        for kind in (StepAlreadyExistsError, ValueError, FileExistsError):
            with pytest.raises(kind, match="committed in .* already"):
                manager.save(1, args=tree(10), force=True)
        assert not manager.is_saving_in_progress()
        declined = manager.save(1, args=tree(10))  # as when a run is resumed
        assert not declined
        assert declined.reason
        assert manager.restore(1)["step"] == 1
        assert manager.save(2, args=tree(2))  # the policy still saves
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 2]


def test_a_step_that_another_process_committed_is_not_replaced(place):
    with CheckpointManager(place) as manager, CheckpointManager(place) as other:
        other.save(1, args=tree(100))
        other.wait_until_finished()
        assert manager.all_steps() == []
        manager.save(1, args=tree(1))
        with pytest.raises(FileExistsError):
            manager.wait_until_finished()
        assert manager.restore(1)["step"] == 100


def test_old_steps_go_and_the_newest_stays(place):
    options = CheckpointManagerOptions(max_to_keep=2, keep_period=4)
    with CheckpointManager(place, options=options) as manager:
        for step in range(7):
            manager.save(step, args=tree(step))
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 4, 5, 6]
    none = CheckpointManagerOptions(max_to_keep=0)
    with CheckpointManager(place, options=none) as manager:
        manager.save(7, args=tree(7))
        manager.wait_until_finished()
        assert manager.all_steps() == [7]
        manager.delete(7)  # said by name
        assert manager.all_steps() == []


@pytest.mark.parametrize(("mode", "best", "kept"), [("max", 0, [0, 2, 3]), ("min", 1, [1, 2, 3])])
def test_the_best_steps_stay_and_steps_without_metrics(place, mode, best, kept):
    losses = {0: 9.0, 1: 1.0, 3: 4.0}
    options = CheckpointManagerOptions(max_to_keep=1, best_fn=lambda m: m["loss"], best_mode=mode)
    with CheckpointManager(place, options=options) as manager:
        for step in range(4):
            metrics = {"loss": losses[step]} if step in losses else None
            manager.save(step, args=tree(step), metrics=metrics)
        manager.wait_until_finished()
        assert manager.best_step() == best
        assert manager.all_steps() == kept  # the best, the one without metrics, the newest
        assert manager.metrics(best) == {"loss": losses[best]}
        assert manager.metrics(2) is None
        assert manager.metadata(best).metrics == {"loss": losses[best]}
    again = CheckpointManager(place, options=options)
    assert again.best_step() == best


def test_no_metrics_no_best_step(place):
    options = CheckpointManagerOptions(best_fn=lambda m: m["loss"], max_to_keep=1)
    with CheckpointManager(place, options=options) as manager:
        for step in range(3):
            manager.save(step, args=tree(step))
        manager.wait_until_finished()
        assert manager.best_step() is None
        assert manager.all_steps() == [0, 1, 2]


def test_metrics_that_are_not_written_are_ranked_all_the_same(place):
    options = CheckpointManagerOptions(
        prevent_write_metrics=True, best_fn=lambda m: m["loss"], best_mode="min"
    )
    with CheckpointManager(place, options=options) as manager:
        for step, loss in enumerate((3.0, 1.0, 2.0)):
            manager.save(step, args=tree(step), metrics={"loss": loss})
        manager.wait_until_finished()
        assert manager.best_step() == 1
    assert CheckpointManager(place).metrics(1) is None
    assert not any("/metrics/" in key for key in keys_below(place))


def test_a_deleted_step_is_gone_here_and_elsewhere(place):
    with CheckpointManager(place) as manager:
        for step in range(3):
            manager.save(step, args=tree(step))
        assert manager.delete(2) is None  # waits for the save
        assert manager.all_steps() == CheckpointManager(place).all_steps() == [0, 1]
        with pytest.raises(FileNotFoundError, match="committed steps: 0, 1"):
            manager.delete(2)
        assert manager.save(2, args=tree(20))
        assert manager.restore(2)["step"] == 20


def test_a_step_with_a_temporary_folder_beside_it_is_deleted_itself(tmp_path):
    with CheckpointManager(tmp_path) as manager:
        manager.save(5, args=tree(5))
        manager.wait_until_finished()
        (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
        (tmp_path / "77").mkdir()  # no step, whatever its name says
        manager.delete(5)
        assert manager.all_steps() == []
        manager.reload()
        assert manager.all_steps() == []


def test_other_processes_are_seen_after_a_reload(place):
    with CheckpointManager(place) as manager, CheckpointManager(place) as other:
        other.save(1, args=tree(1))
        other.wait_until_finished()
        assert manager.all_steps() == []
        assert manager.all_steps(read=True) == [1]
        other.save(2, args=tree(2))
        other.wait_until_finished()
        manager.reload()
        assert manager.latest_step() == 2


def test_a_step_of_another_run_is_restored(place):
    options = CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=5)
    with CheckpointManager(f"{place}/there", options=options) as there:
        for step in (2, 10):
            there.save(step, args=tree(step))
    with CheckpointManager(f"{place}/here", options=options) as here:
        assert here.restore(None, directory=f"{place}/there")["step"] == 10
        assert here.restore(2, directory=f"{place}/there")["step"] == 2
        with pytest.raises(FileNotFoundError):
            here.restore(2)
        with pytest.raises(FileNotFoundError):
            here.restore(None, directory=f"{place}/nowhere")
    assert "ckpt_00010/_COMMIT.json" in keys_below(f"{place}/there")


def test_a_step_and_the_run_are_described(place):
    with CheckpointManager(place, metadata={"version": 1}) as manager:
        assert manager.metadata().custom_metadata == {"version": 1}
        manager.save(3, args=tree(3), custom_metadata={"note": "x"})
        found = manager.metadata(3)
        assert isinstance(found, StepMetadata)
        assert found.custom_metadata == {"note": "x"}
        assert found.item_metadata["w"].shape == (4,)
        assert found.item_handlers["default"].endswith(".StandardCheckpointHandler")
        assert found.commit_timestamp_nsecs >= found.init_timestamp_nsecs > 0
        assert manager.item_metadata(3).tree == found.item_metadata.tree
        with pytest.raises(ValueError, match="of a step"):
            manager.item_metadata(None)
        with pytest.raises(FileNotFoundError):
            manager.metadata(4)
    again = CheckpointManager(place, metadata={"version": 2})
    assert again.metadata().custom_metadata == {"version": 1}


def test_the_metadata_of_the_run_is_not_stored_if_the_options_say_so(place):
    options = CheckpointManagerOptions(save_root_metadata=False)
    with CheckpointManager(place, options=options, metadata={"a": 1}) as manager:
        manager.save(0, args=tree(0))
        assert manager.metadata().custom_metadata == {}
    with pytest.raises(ValueError, match="metadata"):
        CheckpointManager(place, metadata={"a": object()})


@pytest.mark.parametrize("named", [False, True])
def test_a_restore_falls_back_to_the_newest_step_that_is_whole(place, named):
    with CheckpointManager(place) as manager:
        for step in (1, 2, 3):
            manager.save(step, args=Composite(x=tree(step)) if named else tree(step))
    backend = open_backend(place)
    victims = [key for key in keys_below(place) if key.startswith("3/") and "_TREE" in key]
    get_loop().run(backend.delete(victims[0]))
    get_loop().run(backend.put("2/_COMMIT.json", b"{"))
    before = keys_below(place)
    reader = CheckpointManager(place, options=CheckpointManagerOptions(read_only=True))
    found = reader.restore(None, fallback=True)
    assert (found["x"] if named else found)["step"] == 1
    assert reader.last_load.step == 1
    assert {one.step: one.problem for one in reader.last_load.skipped} == {
        3: "incomplete",
        2: "unreadable",
    }
    assert keys_below(place) == before
    with pytest.raises(UnsupportedOperationError):
        reader.unquarantine(3)
    with CheckpointManager(place) as manager:
        with pytest.raises(DamagedCheckpointError):
            manager.restore(3)
        with pytest.raises(ValueError, match="own run"):
            manager.restore(3, directory=place, fallback=True)
        with pytest.raises(ValueError, match=r"Composite"):  # no damage, and raised at once
            manager.restore(None, args=tree(0) if named else Composite(), fallback=True)
        target = StandardRestore({"w": jnp.zeros(4), "step": 0})
        wanted = Composite(x=target) if named else target
        found = manager.restore(3, args=wanted, fallback=True)
        assert (found["x"] if named else found)["step"] == 1
        assert (manager.latest_step(), set(manager.quarantined)) == (1, {2, 3})
        assert manager.save(3, args=Composite(x=tree(30)) if named else tree(30))
    with CheckpointManager(place) as manager:
        found = manager.restore(None)
        assert (found["x"] if named else found)["step"] == 30


def test_a_read_only_manager_writes_nothing(place):
    with CheckpointManager(place, metadata={"a": 1}) as manager:
        manager.save(1, args=tree(1), metrics={"loss": 1.0})
    before = keys_below(place)
    options = CheckpointManagerOptions(
        0, max_to_keep=0, read_only=True, cleanup_tmp_directories=True, should_save_fn=None
    )
    with CheckpointManager(place, options=options, metadata={"b": 2}) as reader:
        assert reader.restore(1)["step"] == 1
        assert not reader.should_save(2)
        declined = reader.save(2, args=tree(2), force=True)
        assert not declined
        assert "read-only" in declined.reason
        assert reader.delete(1) is None
        assert reader.all_steps() == [1]
        assert reader.metrics(1) == {"loss": 1.0}
        assert reader.metadata().custom_metadata == {"a": 1}
        assert list(reader.trash) == []
        for call in (reader.empty_trash, reader.sweep, lambda: reader.restore_from_trash(1)):
            with pytest.raises(NotImplementedError, match="read-only"):
                call()
        reader.wait_until_finished()
    assert keys_below(place) == before
    with CheckpointManager(f"{place}/new", options=options, metadata={"b": 2}) as reader:
        assert reader.metadata().custom_metadata == {"b": 2}
    assert keys_below(place) == before


def test_both_faces_of_a_run_go_on_in_each_other_s(place):
    with training.Checkpointer(place) as run:
        run.save(1, {"w": np.ones(2)}, metrics={"loss": 1.0})
    with CheckpointManager(place) as manager:
        assert manager.restore(1).state["w"].sum() == 2
        assert manager.metrics(1) == {"loss": 1.0}
        manager.save(2, args=Composite(state=StandardSave({"w": np.zeros(2)})))
    with training.Checkpointer(place) as run:
        assert [entry.step for entry in run.checkpoints] == [1, 2]
        assert run.load(2)["w"].sum() == 0


def test_should_save_fn_knows_of_the_step_that_is_being_saved(slow):
    asked = []

    def every_ten(step, latest):
        asked.append(latest)
        return latest is None or step - latest >= 10

    manager = CheckpointManager(
        slow.url, options=CheckpointManagerOptions(should_save_fn=every_ten)
    )
    assert manager.save(5, args=tree(5))
    slow.waiting.wait()
    assert not manager.save(6, args=tree(6))
    assert manager.should_save(15)
    slow.gate.set()
    manager.wait_until_finished()
    assert not manager.should_save(7)
    assert asked == [None, 5, 5, 5]
    manager.close()


class Slow(FaultyBackend):
    """A store whose saves stop before they are whole, until they are let go."""

    def __init__(self, inner):
        super().__init__(inner)
        self.gate = threading.Event()
        self.waiting = threading.Event()
        self.broken = False

    async def put(self, key, data, **how):
        if key.endswith("_CHECKPOINT_METADATA"):
            self.waiting.set()
            while not self.gate.is_set():
                await asyncio.sleep(0.001)
            if self.broken:
                raise TransientStorageError("injected: 503", key=key, root=self.root)
        return await super().put(key, data, **how)


@pytest.fixture
def slow(monkeypatch):
    """A store of that kind, for every manager that is opened."""
    url = f"memory://slow-{uuid.uuid4().hex}/job"
    view = Slow(open_backend(url))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    view.url = url
    yield view
    view.gate.set()


def test_a_step_is_listed_once_it_is_committed(slow):
    policy = CheckpointManagerOptions(save_decision_policy=ContinuousCheckpointingPolicy())
    manager = CheckpointManager(slow.url, options=policy)
    assert manager.save(0, args=tree(0))
    slow.waiting.wait()
    assert manager.is_saving_in_progress()
    assert manager.all_steps() == []
    assert not manager.save(1, args=tree(1))
    assert not manager.save(0, args=tree(1))
    slow.gate.set()
    manager.wait_until_finished()
    assert not manager.is_saving_in_progress()
    assert manager.all_steps() == [0]
    assert manager.save(1, args=tree(1))
    manager.close()
    with pytest.raises(ValueError, match="closed"):
        manager.save(2, args=tree(2))


def test_what_the_caller_changes_while_a_step_is_written_is_not_stored(slow):
    options = CheckpointManagerOptions(best_fn=lambda metrics: metrics["loss"])
    metadata, metrics, custom = {"run": [1]}, {"loss": 1.0}, {"note": ["x"]}
    manager = CheckpointManager(slow.url, options=options, metadata=metadata)
    manager.save(0, args=tree(0), metrics=metrics, custom_metadata=custom)
    slow.waiting.wait()
    metrics["loss"], custom["note"][0], metadata["run"][0] = 99.0, "y", 2
    slow.gate.set()
    manager.wait_until_finished()
    assert manager.metrics(0) == CheckpointManager(slow.url).metrics(0) == {"loss": 1.0}
    assert manager.metadata(0).custom_metadata == {"note": ["x"]}
    assert manager.metadata().custom_metadata == {"run": [1]}
    manager.close()


def test_a_policy_is_told_that_no_save_is_under_way_if_asked(slow):
    options = CheckpointManagerOptions(
        save_decision_policy=ContinuousCheckpointingPolicy(),
        enable_should_save_is_saving_in_progress_check=False,
    )
    manager = CheckpointManager(slow.url, options=options)
    manager.save(0, args=tree(0))
    slow.waiting.wait()
    assert manager.should_save(1)
    slow.gate.set()
    manager.close()


@pytest.mark.parametrize(
    "ask", ["wait_until_finished", "check_for_errors", "save", "restore", "close"]
)
def test_a_failed_save_is_told_once_and_leaves_no_step(slow, ask):
    slow.broken = True
    manager = CheckpointManager(slow.url)
    assert manager.save(0, args=tree(0))
    slow.gate.set()
    while manager.is_saving_in_progress():
        slow.waiting.wait(0.01)
    calls = {"save": lambda: manager.save(1, args=tree(1)), "restore": lambda: manager.restore(0)}
    with pytest.raises(TransientStorageError, match="503"):
        calls.get(ask, getattr(manager, ask, None))()
    slow.broken = False
    manager.wait_until_finished()
    manager.check_for_errors()
    assert manager.all_steps() == []
    if ask != "close":
        assert manager.save(1, args=tree(1))  # the one that was refused was not done
        manager.wait_until_finished()
        assert manager.all_steps() == [1]
    manager.close()


def test_no_step_goes_for_one_whose_save_fails(slow):
    slow.gate.set()
    manager = CheckpointManager(slow.url, options=CheckpointManagerOptions(max_to_keep=1))
    manager.save(0, args=tree(0))
    manager.wait_until_finished()
    slow.broken = True
    manager.save(1, args=tree(1))
    with pytest.raises(TransientStorageError):
        manager.wait_until_finished()
    assert manager.all_steps() == CheckpointManager(slow.url).all_steps() == [0]
    assert manager.restore(None)["step"] == 0
    manager.close()


def test_a_failed_save_in_the_foreground_raises_where_it_was_called(slow):
    slow.broken = True
    slow.gate.set()
    options = CheckpointManagerOptions(enable_async_checkpointing=False)
    with CheckpointManager(slow.url, options=options) as manager:
        with pytest.raises(TransientStorageError):
            manager.save(0, args=tree(0))
        assert manager.all_steps() == []
        manager.check_for_errors()


def test_an_error_in_the_block_is_not_hidden_by_that_of_a_save(slow):
    slow.broken = True
    slow.gate.set()
    with pytest.raises(KeyError, match="mine"), CheckpointManager(slow.url) as manager:
        manager.save(0, args=tree(0))
        raise KeyError("mine")


def test_a_job_that_is_to_be_stopped_saves_the_step_that_the_service_names(place, monkeypatch):
    service = "reached_preemption_sync_point"
    monkeypatch.setattr(multihost_utils, service, lambda step: step == 2)
    with CheckpointManager(place, options=CheckpointManagerOptions(4)) as manager:
        for step in range(6):
            manager.save(step, args=JsonSave(step))
        manager.wait_until_finished()
        assert manager.all_steps() == [0, 2, 4]
        assert manager.reached_preemption(2)
        assert not manager.reached_preemption(np.int64(3))


@pytest.mark.parametrize("background", [True, False])
def test_the_callback_comes_after_the_commit(place, background):
    seen = []
    called = AsyncOptions(
        post_finalization_callback=lambda: seen.append(CheckpointManager(place).all_steps())
    )
    options = CheckpointManagerOptions(async_options=called, enable_async_checkpointing=background)
    with CheckpointManager(place, options=options) as manager:
        manager.save(3, args=tree(3))
    assert seen == [[3]]


def test_a_program_that_calls_from_several_threads_loses_nothing(place):
    with CheckpointManager(place) as manager:
        done = []

        def save(step):
            done.append(bool(manager.save(step, args=JsonSave({"step": step}), force=True)))

        threads = [threading.Thread(target=save, args=[step]) for step in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        manager.wait_until_finished()
        assert done == [True] * 8
        assert manager.all_steps() == list(range(8))
