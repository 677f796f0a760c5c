"""CheckpointManagerOptions: what each option does, and what is refused when they are made."""

import dataclasses
import datetime
import time
import uuid

import numpy as np
import pytest

from holdfast_checkpointer.args import JsonSave, StandardSave
from holdfast_checkpointer.errors import UnsupportedOptionError
from holdfast_checkpointer.options import (
    AsyncOptions,
    AtomicityOptions,
    Context,
    FileOptions,
    MultiprocessingOptions,
)
from holdfast_manager.checkpoint_manager import CheckpointManager, CheckpointManagerOptions
from holdfast_manager.checkpoint_manager.policies import what_to_keep, when_to_save
from holdfast_manager.policies.preservation_policies import LatestN, PreserveAll
from holdfast_manager.policies.save_decision_policies import FixedIntervalPolicy
from holdfast_manager.step_names import composite_name_format, standard_name_format
from holdfast_storage import LeaseLostError, get_loop, open_backend
from holdfast_storage.commit import identity
from holdfast_storage.lease import ProcessLeases, acquire


@pytest.fixture
def place():
    """A run in memory: what a store has to do with it is tested elsewhere."""
    return f"memory://run-{uuid.uuid4().hex}/job"


def saved(place, steps, **options):
    """Which of these steps a manager has after it was offered them all."""
    with CheckpointManager(place, options=CheckpointManagerOptions(**options)) as manager:
        for step in steps:
            manager.save(step, args=JsonSave(step))
        manager.wait_until_finished()
        return manager.all_steps()


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"save_interval_steps": 0}, ValueError, ">= 1 or None, got 0"),
        ({"save_interval_steps": 1.5}, TypeError, "save_interval_steps"),
        ({"max_to_keep": -1}, ValueError, "max_to_keep is an integer >= 0"),
        ({"keep_period": 0}, ValueError, "keep_period is an integer >= 1"),
        ({"keep_time_interval": 60}, TypeError, "datetime.timedelta"),
        ({"keep_time_interval": datetime.timedelta(-1)}, ValueError, ">= 0"),
        ({"best_fn": "loss"}, TypeError, "function of metrics"),
        ({"best_mode": "least"}, ValueError, "'min' or 'max', got 'least'"),
        ({"should_save_fn": 5}, TypeError, "function of two steps"),
        ({"save_on_steps": 5}, TypeError, "container of integers"),
        ({"save_on_steps": [1.5]}, TypeError, "got 1.5, which no step"),
        ({"step_prefix": "a/b"}, ValueError, "folder of a step"),
        ({"step_format_fixed_length": 0}, ValueError, ">= 1"),
        ({"step_name_format": "step"}, TypeError, "build_name"),
        ({"save_decision_policy": print}, TypeError, "should_save"),
        ({"preservation_policy": print}, TypeError, "should_preserve"),
        ({"preservation_policy": PreserveAll(), "max_to_keep": 0}, ValueError, "max_to_keep"),
        ({"preservation_policy": PreserveAll(), "keep_period": 3}, ValueError, "keep_period"),
        (
            {"preservation_policy": PreserveAll(), "keep_time_interval": datetime.timedelta(1)},
            ValueError,
            "EveryNSeconds",
        ),
        ({"todelete_subdir": "a", "todelete_full_path": "b"}, ValueError, "exclude each other"),
        ({"todelete_full_path": "trash"}, UnsupportedOptionError, "todelete_subdir='trash'"),
        ({"todelete_subdir": "../trash"}, ValueError, "in the run"),
        ({"todelete_subdir": "7"}, ValueError, "name of a step"),
        ({"num_deletion_threads": 0}, ValueError, ">= 1"),
        ({"single_host_load_and_broadcast": True}, UnsupportedOptionError, "one listing"),
        ({"enable_per_process_directory_creation": True}, UnsupportedOptionError, "one process"),
        ({"temporary_path_class": str}, UnsupportedOptionError, "becomes visible"),
        ({"async_options": FileOptions()}, TypeError, "AsyncOptions"),
        ({"multiprocessing_options": 1}, TypeError, "MultiprocessingOptions"),
        ({"file_options": 1}, TypeError, "FileOptions"),
        ({"atomicity_options": 1}, TypeError, "AtomicityOptions"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_the_options_are_made(options, kind, told):
    with pytest.raises(kind, match=told):
        CheckpointManagerOptions(**options)


def test_options_are_not_changed_by_a_manager(place):
    options = CheckpointManagerOptions(
        read_only=True,
        max_to_keep=3,
        keep_period=2,
        save_on_steps={1},
        async_options=AsyncOptions(),
    )
    before = dataclasses.asdict(options)
    CheckpointManager(place, options=options)
    assert dataclasses.asdict(options) == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.max_to_keep = 4


def test_the_interval_and_further_steps_say_when_to_save(place):
    assert saved(f"{place}/a", range(1, 9), save_interval_steps=4) == [1, 4, 8]  # the first, too
    on_steps = {"save_interval_steps": 10_000, "save_on_steps": [2, 5]}
    assert saved(f"{place}/b", range(7), **on_steps) == [0, 2, 5]
    assert saved(f"{place}/c", range(4), save_interval_steps=None) == [0]


def test_a_function_or_a_policy_says_when_to_save_instead(place):
    options = {"should_save_fn": lambda step, latest: step in (2, 3), "save_on_steps": [1]}
    assert saved(f"{place}/a", range(5), **options) == [2, 3]
    options = {"save_decision_policy": FixedIntervalPolicy(3), "save_on_steps": [1]}
    assert saved(f"{place}/b", range(1, 8), **options) == [3, 6]


def test_a_policy_says_what_to_keep_and_best_fn_which_is_the_best(place):
    options = CheckpointManagerOptions(preservation_policy=LatestN(2), best_fn=lambda m: m["x"])
    with CheckpointManager(place, options=options) as manager:
        for step in range(4):
            manager.save(step, args=JsonSave(1), metrics={"x": -step})
        manager.wait_until_finished()
        assert manager.all_steps() == [2, 3]
        assert manager.best_step() == 2


def test_one_step_for_each_length_of_time_is_kept(tmp_path, monkeypatch):
    # On a disk of its own: the clock of the store in memory, which others use, never goes back.
    place, now = str(tmp_path / "job"), time.time_ns()
    options = {"max_to_keep": 1, "keep_time_interval": datetime.timedelta(hours=3)}
    with CheckpointManager(place, options=CheckpointManagerOptions(**options)) as manager:
        for step in range(8):
            monkeypatch.setattr(time, "time_ns", lambda step=step: now + step * 3600 * 10**9)
            manager.save(step, args=JsonSave(step))
            manager.wait_until_finished()
        assert manager.all_steps() == [0, 3, 6, 7]


def test_steps_without_metrics_go_if_they_are_not_to_stay(place):
    options = CheckpointManagerOptions(
        max_to_keep=1, best_fn=lambda m: m["x"], keep_checkpoints_without_metrics=False
    )
    with CheckpointManager(place, options=options) as manager:
        for step in range(4):
            manager.save(step, args=JsonSave(1), metrics={"x": 1.0} if step == 1 else None)
        manager.wait_until_finished()
        assert manager.all_steps() == [1, 3]


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({}, "7"),
        ({"step_prefix": "ckpt"}, "ckpt_7"),
        ({"step_format_fixed_length": 4}, "0007"),
        ({"step_prefix": "ckpt", "step_format_fixed_length": 4}, "ckpt_0007"),
        ({"step_name_format": standard_name_format(step_prefix="s"), "step_prefix": "t"}, "s_7"),
    ],
)
def test_folders_are_called_as_the_options_say(tmp_path, options, folder):
    assert saved(tmp_path, [7], **options) == [7]
    assert (tmp_path / folder / "default").is_dir()
    assert CheckpointManager(tmp_path, options=CheckpointManagerOptions(**options)).all_steps() == [
        7
    ]


def test_folders_of_two_formats_are_listed_and_restored(place):
    saved(place, [3], step_prefix="old")
    both = composite_name_format(standard_name_format(), [standard_name_format(step_prefix="old")])
    options = CheckpointManagerOptions(step_name_format=both)
    with CheckpointManager(place, options=options) as manager:
        manager.save(4, args=JsonSave(4))
        manager.wait_until_finished()
        assert manager.all_steps() == [3, 4]
        assert [manager.restore(step) for step in (3, 4)] == [3, 4]
        manager.delete(3)
        assert manager.all_steps() == [4]


def test_directories_get_their_mode(tmp_path):
    options = {"file_options": FileOptions(path_permission_mode=0o750)}
    saved(tmp_path / "run", [0], **options)
    assert (tmp_path / "run" / "0").stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "run" / "0" / "default").stat().st_mode & 0o777 == 0o750


def test_groups_of_options_win_over_those_of_a_context(place):
    context = Context(asynchronous=AsyncOptions(timeout_secs=5), file=FileOptions(spool_bytes=7))
    options = CheckpointManagerOptions(async_options=AsyncOptions(timeout_secs=9))
    found = CheckpointManager(place, options=options, context=context)._context
    assert (found.asynchronous.timeout_secs, found.file.spool_bytes) == (9, 7)
    with context:
        assert CheckpointManager(place)._context.asynchronous.timeout_secs == 5


def test_another_way_to_commit_and_processes_that_the_job_has_not_are_refused(tmp_path):
    options = CheckpointManagerOptions(atomicity_options=AtomicityOptions(mode="commit_file"))
    with CheckpointManager(tmp_path / "a", options=options) as manager:
        manager.save(0, args=JsonSave(1))
        with pytest.raises(UnsupportedOptionError, match="atomic_rename"):
            manager.wait_until_finished()
    options = CheckpointManagerOptions(
        multiprocessing_options=MultiprocessingOptions(primary_host=3)
    )
    manager = CheckpointManager(tmp_path / "b", options=options)
    with pytest.raises(ValueError, match="names the processes"):
        manager.save(0, args=JsonSave(1))


def test_options_that_make_no_difference_make_none(place):
    options = {
        "create": False,
        "enable_background_delete": True,
        "lightweight_initialize": True,
        "max_to_keep": 1,
    }
    assert saved(place, range(3), **options) == [2]
    light = CheckpointManager(place, options=CheckpointManagerOptions(**options))
    assert light.restore(None) == 2


@pytest.mark.parametrize("local", [True, False])
def test_removed_steps_go_to_the_folder_that_is_named_and_come_back(local, place, tmp_path):
    where = tmp_path if local else place
    options = CheckpointManagerOptions(max_to_keep=2, todelete_subdir="ttl=1h")
    with CheckpointManager(where, options=options) as manager:
        for step in range(4):
            manager.save(step, args=JsonSave(step))
        manager.wait_until_finished()
        manager.delete(3)
        assert manager.all_steps() == [2]
        assert [entry.step for entry in manager.trash] == [0, 1, 3]
        assert (tmp_path / "ttl=1h").is_dir() is local
        manager.restore_from_trash(3)
        assert manager.restore(3) == 3
        assert manager.empty_trash() == [0, 1]
    assert CheckpointManager(where).all_steps() == [2, 3]


def test_a_run_is_taken_from_another_job_if_the_options_say_so(place):
    def far_away():
        own = identity.new_mark(uuid.uuid4().hex, "lease")
        return dataclasses.replace(own, host="far-away", boot_id="far-away", pid=4711)

    leases = ProcessLeases()
    old = get_loop().run(acquire(open_backend(place), leases=leases, mark=far_away, beat_s=3600))
    options = CheckpointManagerOptions(takeover=True)
    with CheckpointManager(place, options=options) as manager:
        manager.save(0, args=JsonSave(1))
        manager.wait_until_finished()
        assert manager.all_steps() == [0]
    with pytest.raises(LeaseLostError):
        get_loop().run(old.require())
    leases.release_all()


def test_so_many_steps_are_deleted_at_a_time():
    options = CheckpointManagerOptions(num_deletion_threads=np.int64(5))
    assert options.deletion().at_once == 5
    assert CheckpointManagerOptions().deletion().at_once == 2


def test_read_only_options_save_nothing_and_keep_everything():
    options = CheckpointManagerOptions(read_only=True, max_to_keep=1)
    assert when_to_save(options).policies == ()
    assert what_to_keep(options) == PreserveAll()


def test_leftovers_are_looked_for_at_once_if_asked(tmp_path, monkeypatch):
    from holdfast_manager.engine.retention import Retention

    swept = []
    monkeypatch.setattr(Retention, "sweep", lambda self: swept.append(self))
    CheckpointManager(tmp_path)
    assert not swept
    CheckpointManager(tmp_path, options=CheckpointManagerOptions(cleanup_tmp_directories=True))
    assert len(swept) == 1
    reader = CheckpointManagerOptions(cleanup_tmp_directories=True, read_only=True)
    CheckpointManager(tmp_path, options=reader)
    assert len(swept) == 1


def test_a_snapshot_is_taken_before_save_returns(place):
    array = np.zeros(3)
    with CheckpointManager(place) as manager:
        manager.save(0, args=StandardSave({"w": array}))
        array[:] = 9
        assert manager.restore(0)["w"].sum() == 0
