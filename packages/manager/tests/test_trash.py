"""The trash of a run: where removed steps go, how they come back, and how it is emptied."""

import dataclasses
import datetime

import numpy as np
import pytest

from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.errors import StepAlreadyExistsError, StepNotFoundError, StepNotInTrashError
from holdfast_manager.policies.preservation_policies import LatestN
from holdfast_manager.step_names import standard_name_format
from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import Trash as TrashFolder
from holdfast_storage.commit.sweep import StoreClock
from holdfast_storage.errors import CommitConflictError, DamagedCheckpointError
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash

NOTHING = datetime.timedelta(0)


def state(value):
    return {"w": np.full(3, value, np.float32)}


def steps(listed):
    return [entry.step for entry in listed]


def open_run(place, keep=None, trash=training.Trash(), **how):  # noqa: B008 - it is frozen
    policy = None if keep is None else LatestN(keep)
    return training.Checkpointer(place, preservation_policy=policy, trash=trash, **how)


def save(run, *numbers):
    for number in numbers:
        assert run.save(number, state(number))
    run.wait()


def files(place, below=""):
    async def walk():
        return sorted([info.key async for info in open_backend(place).walk(below)])

    return get_loop().run(walk())


def test_what_a_policy_removes_can_be_restored_and_loads(place):
    with open_run(place, keep=1) as run:
        save(run, 1, 2, 3)
        assert steps(run.checkpoints) == steps(training.Checkpointer(place).checkpoints) == [3]
        assert steps(run.trash) == [1, 2]
        now = datetime.datetime.now(datetime.UTC)
        assert all(abs(entry.time - now) < datetime.timedelta(hours=1) for entry in run.trash)
        assert all(entry.size_bytes > 300 for entry in run.trash)
        with pytest.raises(StepNotFoundError):
            run.load(1)
        run.restore_from_trash(1)
        assert steps(run.checkpoints) == [1, 3]
        assert run.load(1)["w"][0] == 1
        assert steps(run.trash) == [2]
    later = training.Checkpointer(place)  # without a trash of its own
    assert steps(later.checkpoints) == [1, 3]
    later.restore_from_trash(np.int64(2))
    assert later.load(2)["w"][0] == 2


def test_a_restored_step_goes_again_unless_it_is_pinned(place):
    with open_run(place, keep=1) as run:
        save(run, 1, 2, 3)
        run.restore_from_trash(1)
        run.restore_from_trash(2)
        run.pin(2, "good")
        save(run, 4)
        assert steps(run.checkpoints) == [2, 4]
        assert steps(run.trash) == [3, 1] or steps(run.trash) == [1, 3]


def test_a_step_that_exists_anew_is_not_replaced_and_both_stay(place):
    with open_run(place) as run:
        save(run, 1, 2)
        assert run.delete(1)
        assert run.save(1, state(10), force=True)
        with pytest.raises(StepAlreadyExistsError, match="so does the one in the trash"):
            run.restore_from_trash(1)
        assert run.load(1)["w"][0] == 10
        assert run.delete(1)
        assert steps(run.trash) == [1, 1]
        first, last = run.trash
        run.restore_from_trash(first)
        assert run.load(1)["w"][0] == 1
        assert run.delete(1)
        run.restore_from_trash(last)
        assert run.load(1)["w"][0] == 10


def test_what_is_not_in_the_trash_is_said_with_what_is(place):
    with open_run(place) as run:
        save(run, 1, 2)
        run.delete(1)
        with pytest.raises(StepNotInTrashError, match=r"step 7 is not in the trash .*; there: 1"):
            run.restore_from_trash(7)
        entry = run.trash[0]
        assert run.empty_trash() == [1]
        with pytest.raises(StepNotInTrashError, match="there: none"):
            run.restore_from_trash(entry)
        with pytest.raises(TypeError, match="a step is an integer"):
            run.restore_from_trash("1")
    assert [key for key in files(place) if not key.startswith(("2/", "_lease/"))] in (
        [],
        ["1/_COMMIT.json"],
    )


def test_a_damaged_step_stays_in_the_trash(place):
    with open_run(place) as run:
        save(run, 1, 2)
        run.delete(1)
        prefix = run.trash[0]._entry.prefix
        get_loop().run(open_backend(place).delete(f"{prefix}/state/_TREE.json"))
        with pytest.raises(DamagedCheckpointError):
            run.restore_from_trash(1)
        assert steps(run.checkpoints) == [2]
        assert steps(run.trash) == [1]


def test_the_trash_is_emptied_by_age_and_not_before(place):
    week = datetime.timedelta(weeks=1)
    with open_run(place, keep=1, trash=training.Trash(keep_for=week)) as run:
        save(run, 1, 2, 3)
        assert run.empty_trash(older_than=datetime.timedelta(days=1)) == []
    with open_run(place) as run:  # for ever
        save(run, 4)
        assert steps(run.trash) == [1, 2]
    with open_run(place, trash=training.Trash(keep_for=NOTHING)) as run:
        save(run, 5)
    assert steps(training.Checkpointer(place).trash) == []
    assert not [key for key in files(place) if key.startswith((".trash/", "1/s", "2/s"))]


def test_the_trash_may_lie_anywhere_in_the_run_but_not_where_steps_are(place):
    with open_run(place, trash=training.Trash(prefix="old/steps")) as run:
        save(run, 1, 2)
        run.delete(1)
        assert steps(run.trash) == [1]
        assert steps(training.Checkpointer(place).trash) == []  # it looks in its own
        run.reload()
        assert steps(run.checkpoints) == [2]
    with pytest.raises(ValueError, match="'7' is the name of a step"):
        open_run(place, trash=training.Trash(prefix="7/x"))
    names = standard_name_format(step_prefix="step")
    with pytest.raises(ValueError, match="'step_3' is the name of a step"):
        open_run(place, trash=training.Trash(prefix="step_3"), step_name_format=names)


@pytest.mark.parametrize("prefix", ["", "/tmp/trash", "../trash", "a//b", "s3://b/t"])
def test_a_trash_outside_of_the_run_is_refused(prefix):
    with pytest.raises(ValueError, match="the trash"):
        training.Trash(prefix=prefix)


@pytest.mark.parametrize("prefix", ["_pins", "metadata/x", ".x.partial", ".holdfast-trash"])
def test_a_trash_in_the_place_of_something_else_is_refused(prefix):
    with pytest.raises(ValueError, match="another use"):
        training.Trash(prefix=prefix)


def test_what_is_no_trash_is_refused(place):
    with pytest.raises(TypeError, match=r"trash is a training\.Trash or None, got '\.trash'"):
        training.Checkpointer(place, trash=".trash")
    with pytest.raises(TypeError, match="keep_for is a datetime.timedelta, got 7"):
        training.Trash(keep_for=7)
    with pytest.raises(ValueError, match="must not be negative"):
        training.Trash(keep_for=-datetime.timedelta(1))
    with pytest.raises(TypeError, match="prefix is a folder in the run"):
        training.Trash(prefix=None)
    with training.Checkpointer(place) as run, pytest.raises(TypeError, match="older_than is a"):
        run.empty_trash(older_than=3)


def on_a_faulty_store(monkeypatch, place, faults):
    """Each request would be a round trip, so that there are hints too."""
    view = FaultyBackend(open_backend(place), faults)
    view.hints = dataclasses.replace(view.hints, round_trips=True)
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    return view


@pytest.mark.parametrize("fault", [Fault.CRASH, Fault.LOSE_REPLY])
@pytest.mark.parametrize("what", ["delete", "restore_from_trash", "empty_trash"])
def test_a_fault_at_any_call_leaves_a_step_in_one_place_or_gone_as_was_said(
    place, monkeypatch, what, fault
):
    number, reached = 0, True
    while reached:
        number += 1
        url = f"{place}-{number}"
        on_a_faulty_store(monkeypatch, url, {})
        with open_run(url) as run:
            save(run, 1, 2)
            if what != "delete":
                run.delete(1)
        view = on_a_faulty_store(monkeypatch, url, {number: fault})
        run = open_run(url)
        done = False
        try:
            told = getattr(run, what)(*([] if what == "empty_trash" else [1]))
            done = told != []
            run.close()
        except (SimulatedCrash, Exception):
            pass
        reached = len(view.calls) >= number
        on_a_faulty_store(monkeypatch, url, {})
        check_one_place(url, what, done=done, calls=view.calls)


def check_one_place(url, what, *, done, calls):
    outcomes = []
    for _ in range(2):  # before a sweep and after
        found = training.Checkpointer(url)
        listed = [entry.step for entry in found.checkpoints if there(found, entry.step)]
        outcomes.append((listed, steps(found.trash)))
        assert all(found.load(step)["w"][0] == step for step in listed), calls
        found.sweep(older_than=NOTHING)
        found.close()
    expected = {
        "delete": ([2], [1]),
        "restore_from_trash": ([1, 2], []),
        "empty_trash": ([2], []),
    }[what]
    before = ([1, 2], []) if what == "delete" else ([2], [1])
    assert outcomes[1] in ([expected] if done else [expected, before]), calls
    assert outcomes[0] == outcomes[1], calls
    if outcomes[1] == ([2], [1]):
        found.restore_from_trash(1)
        assert found.load(1)["w"][0] == 1
    if outcomes[1] == ([2], []):
        left = [key for key in files(url) if not key.startswith(("2/", "_committed/2", "_lease/"))]
        assert left in ([], ["1/_COMMIT.json"]), calls


def there(run, step):
    """A stale hint is listed until somebody looks."""
    try:
        run.load(step)
    except StepNotFoundError:
        return False
    return True


def test_who_is_late_for_a_step_in_the_trash_or_removes_what_comes_back_is_told_so(
    tmp_path, monkeypatch
):
    view = FaultyBackend(open_backend(tmp_path))
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    with open_run(tmp_path) as run:
        save(run, 1, 2)
        run.delete(1)
        rename = view.rename_prefix

        async def brought_back_at_once(source, destination):
            await rename(source, destination)
            await rename(destination, source)

        monkeypatch.setattr(view, "rename_prefix", brought_back_at_once)
        with pytest.raises(CommitConflictError, match="brought back meanwhile; it stays"):
            run.delete(2)
        monkeypatch.setattr(view, "rename_prefix", rename)
        assert steps(run.checkpoints) == [2]
        check = TrashFolder.restore

        async def emptied_at_once(folder, entry):
            await (await folder.empty(entry))()
            await check(folder, entry)

        monkeypatch.setattr(TrashFolder, "restore", emptied_at_once)
        with pytest.raises(StepNotInTrashError):
            run.restore_from_trash(1)
        assert (steps(run.checkpoints), steps(run.trash)) == ([2], [])


def test_of_the_trash_only_what_is_due_is_read_after_a_save(place, monkeypatch):
    view = FaultyBackend(open_backend(place), reads=True)
    monkeypatch.setattr(Context, "open_backend", lambda *_: view)
    with open_run(place, keep=1, trash=training.Trash(datetime.timedelta(days=1))) as run:
        save(run, 1, 2, 3, 4)
        run._run.reaper.close(60)  # what is swept at the first save
        del view.calls[:]
        save(run, 5)
        run._run.reaper.close(60)
        read = [call for call in view.calls if call.operation in ("get", "read")]
        assert not [call.key for call in read if call.key.endswith(".trashed")]
        assert steps(run.trash) == [1, 2, 3, 4]
        first, second = [one.time.timestamp() for one in run.trash][:2]
        due = (first + second) / 2 + datetime.timedelta(days=1).total_seconds()

        async def age(clock, modified):
            return due - modified

        monkeypatch.setattr(StoreClock, "age", age)
        del view.calls[:]
        get_loop().run(run._run.trash.empty(datetime.timedelta(days=1)))
        run._run.reaper.close(60)
        read = [call for call in view.calls if call.operation in ("get", "read")]
        assert {call.key for call in read if call.key.endswith(".trashed")} == {".trash/.1.trashed"}
        assert steps(run.trash) == [2, 3, 4]
