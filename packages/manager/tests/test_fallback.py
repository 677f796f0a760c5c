"""Loading falls back to the newest good step: over damage, and over nothing else."""

import asyncio
import uuid

import numpy as np
import pytest

from holdfast_checkpointer import options
from holdfast_checkpointer.errors import ItemNotFoundError, TreeMismatchError
from holdfast_checkpointer.functions import state_reader
from holdfast_manager import training
from holdfast_manager.engine.run import Run, RunSettings
from holdfast_manager.errors import (
    NoGoodStepError,
    StepAlreadyExistsError,
    StepNotFoundError,
)
from holdfast_manager.policies.preservation_policies import PreserveAll
from holdfast_manager.policies.save_decision_policies import InitialSavePolicy
from holdfast_metadata import MetadataError, NewerFormatError, QuarantineMark
from holdfast_storage import get_loop, open_backend
from holdfast_storage.errors import (
    CheckpointChangedError,
    DamagedCheckpointError,
    IncompleteCheckpointError,
    ObjectNotFoundError,
    RecordForbiddenError,
    RecordUnreadableError,
    StorageError,
    StorageFullError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
)
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash


def state(value):
    return {"w": np.full(300, value, np.float32), "name": f"of {value}", "step": value}


def value_of(loaded):
    """Which state this is, whole."""
    value = loaded["step"]
    assert loaded["name"] == f"of {value}"
    np.testing.assert_array_equal(loaded["w"], state(value)["w"])
    return value


def steps(checkpointer):
    return [entry.step for entry in checkpointer.checkpoints]


def save(place, *numbers, **how):
    with training.Checkpointer(place, **how) as checkpointer:
        for number in numbers:
            assert checkpointer.save(number, state(number))


def ask(coroutine):
    return get_loop().run(coroutine)


def files_of(backend, prefix):
    async def walk():
        return {info.key: await backend.get(info.key) async for info in backend.walk(prefix)}

    return dict(sorted(ask(walk()).items()))


def marks(backend):
    return sorted(files_of(backend, "_quarantine"))


def damage(backend, step):
    """Changes a document of a step, so that its digest is not the one that was saved."""
    files = files_of(backend, str(step))
    (key,) = [key for key in files if key.endswith("_TREE.json")]
    ask(backend.put(key, files[key].replace(b"step", b"pets")))


def opened(backend):
    settings = RunSettings(InitialSavePolicy(), PreserveAll())
    return Run(backend, options.current(None), settings)


def load(run, read=None):
    """Loads with fallback what a run holds; gives the response."""
    reader = read or state_reader(
        run.directory.backend, None, checkpointable_name="AUTO", context=options.current(None)
    )
    return run.loading.start(None, reader, fallback=True, deadline=None)


def changes(content):
    middle = len(content) // 2
    for position in {0, middle, len(content) - 1}:
        changed = bytearray(content)
        changed[position] ^= 1
        yield "flipped", bytes(changed)
    yield "cut off", content[:middle]
    yield "gone", None


def test_any_damage_to_any_file_is_passed_over_or_changes_nothing(place):
    """Then the step is saved again, as a training that goes on does, and is good."""
    save(place, 1, 2, 3)
    backend = open_backend(place)
    pristine = files_of(backend, "3")
    seen = set()
    for key, content in pristine.items():
        for what, changed in changes(content) if content else [("gone", None)]:
            ask(backend.delete(key) if changed is None else backend.put(key, changed))
            run = training.Checkpointer(place)
            value = value_of(run.load(fallback=True))
            report = run.last_load
            assert report.step == value
            if value == 3:
                assert not report.skipped
            else:
                assert value == 2
                told = {one.step: one for one in report.skipped}
                assert set(told) <= {3}  # a step that lost its record may be none at all
                seen |= {(what, one.problem) for one in told.values()}
                assert run.latest.step == 2
                assert dict(run.quarantined) == told
                marked = marks(backend)
                unreadable = any(one.problem == "unreadable" for one in told.values())
                assert marked == (["_quarantine/3"] if told else [])
                if told and not unreadable:
                    again = training.Checkpointer(place)
                    assert (again.latest.step, set(again.quarantined)) == (2, {3})
                    assert run.save(3, state(3))
                    assert (run.latest.step, dict(run.quarantined)) == (3, {})
                    run.close()
                    assert marks(backend) == []
                    assert value_of(training.Checkpointer(place).load()) == 3
            ask(backend.delete_prefix("3"))
            for name, saved in pristine.items():
                ask(backend.put(name, saved, durable=False))
            ask(backend.delete_prefix("_quarantine"))
    assert {problem for _, problem in seen} == {"damaged", "incomplete", "unreadable"}


def test_steps_whose_record_cannot_be_read_are_reported_marked_and_never_replaced(place):
    save(place, 1, 2, 3)
    backend = open_backend(place)
    records = {step: ask(backend.get(f"{step}/_COMMIT.json")) for step in (2, 3)}
    for step in records:
        ask(backend.put(f"{step}/_COMMIT.json", b"{"))
    run = training.Checkpointer(place)
    assert value_of(run.load(fallback=True)) == 1
    found = {one.step: one.problem for one in run.last_load.skipped}
    assert found == {3: "unreadable", 2: "unreadable"}
    assert marks(backend) == ["_quarantine/2", "_quarantine/3"]
    again = training.Checkpointer(place)
    assert {step: bool(one.found_by) for step, one in again.quarantined.items()} == {
        2: True,
        3: True,
    }
    with pytest.raises(RecordUnreadableError):
        again.save(3, state(30))
    again.close()
    ask(backend.put("2/_COMMIT.json", records[2]))  # repaired
    ask(backend.delete_prefix("3"))  # moved away by hand
    with training.Checkpointer(place) as run:
        assert ([entry.step for entry in run.checkpoints], dict(run.quarantined)) == ([1, 2], {})
        assert run.save(4, state(4))
        run._run.reaper.close(60)
    assert marks(backend) == []


def test_a_newest_step_whose_record_cannot_be_read_is_none_after_the_next_save_either(place):
    save(place, 1, 2)
    backend = open_backend(place)
    ask(backend.put("2/_COMMIT.json", b"{"))
    with training.Checkpointer(place) as run:
        assert (steps(run), list(run.quarantined)) == ([1], [2])
        assert run.save(3, state(3))
    again = training.Checkpointer(place)
    assert (steps(again), list(again.quarantined)) == ([1, 3], [2])
    assert again.quarantined[2].found_by
    with pytest.raises(RecordUnreadableError):
        again.save(2, state(2), force=True)
    again.close()


@pytest.mark.parametrize("backwards", [False, True])
def test_half_a_copy_is_passed_over_and_taken_once_it_is_whole(place, backwards):
    save(place, 1, 2)
    other = f"{place}-other"
    save(other, 3)
    backend = open_backend(place)
    copied = sorted(files_of(open_backend(other), "3").items(), reverse=backwards)
    for number, (key, content) in enumerate(copied):
        for part in (content[: len(content) // 2], content):
            ask(backend.put(key, part, durable=False))
            run = training.Checkpointer(place)
            value = value_of(run.load(fallback=True))
            assert value in (2, 3)
            assert run.last_load.step == value
            if number == len(copied) - 1 and part == content:
                assert value == 3
    # It was marked as incomplete, and is no longer.
    assert value_of(run.load(fallback=True)) == 3
    assert run.quarantined == {}
    assert run.latest.step == 3


def refusals():
    newer = RecordUnreadableError("a newer version")
    newer.__cause__ = NewerFormatError("format 2")
    return [
        TreeMismatchError(["a: shape"]),
        ItemNotFoundError("no item"),
        TypeError("no such type"),
        KeyError("x"),
        MetadataError("a defect"),
        MemoryError(),
        StorageFullError("no space"),
        StoragePermissionError("403"),
        RecordForbiddenError("403"),
        newer,
        StorageTimeoutError("late"),
        TimeoutError("late"),
        TransientStorageError("503"),
        StorageError("an input/output error"),
        ObjectNotFoundError("a file that is not part of it"),
        CheckpointChangedError("again and again"),
        OSError(5, "Input/output error"),
    ]


@pytest.mark.parametrize("error", refusals(), ids=lambda error: type(error).__name__)
def test_what_is_no_proof_of_damage_is_raised_at_once_and_marks_nothing(error):
    place = f"memory://run-{uuid.uuid4().hex}/job"
    save(place, 1, 2)
    run = opened(open_backend(place))
    asked = []

    async def read(name):
        asked.append(name)
        raise error

    with pytest.raises(type(error)) as caught:
        load(run, read).result()
    assert caught.value is error
    assert any("while loading step 2" in note for note in error.__notes__)
    assert asked == ["2"]
    assert run.known.latest.step == 2
    assert marks(run.directory.backend) == []


def test_damage_that_is_seen_once_is_none(place):
    save(place, 1, 2)
    run = opened(open_backend(place))
    looks = []

    async def read(name):
        looks.append(name)
        if len(looks) == 1:
            raise DamagedCheckpointError("a bit flipped on the way")
        return name

    response = load(run, read)
    assert response.result() == "2"
    assert response.report.skipped == ()
    assert looks == ["2", "2"]
    assert marks(run.directory.backend) == []


def test_a_step_that_is_removed_meanwhile_is_not_damaged_and_a_newer_one_is_taken(place):
    save(place, 1, 2)
    run = opened(open_backend(place))
    reader = state_reader(
        run.directory.backend, None, checkpointable_name="AUTO", context=options.current(None)
    )
    asked = []

    def change():
        with training.Checkpointer(place) as other:
            other.delete(2)
            other.save(3, state(3))

    async def read(name):
        asked.append(name)
        if len(asked) == 1:
            await asyncio.to_thread(change)
        return await reader(name)

    response = load(run, read)
    assert value_of(response.result()) == 3
    assert asked == ["2", "3"]
    assert (response.report.step, response.report.skipped) == (3, ())
    assert marks(run.directory.backend) == []


def reads_of_a_load(backend, count_only=None):
    view = FaultyBackend(backend, reads=True)
    run = opened(view)
    before = len(view.calls)
    load(run).result()
    return before, len(view.calls)


@pytest.mark.parametrize("damaged", [False, True])
def test_no_fault_of_the_storage_ever_marks_a_good_step(damaged):
    """At every request of a load, the store answers 503, or says nothing."""
    place = f"memory://run-{uuid.uuid4().hex}/job"
    save(place, 1, 2, 3)
    backend = open_backend(place)
    if damaged:
        damage(backend, 3)
    first, last = reads_of_a_load(backend)
    outcomes = set()
    for number in range(first + 1, last + 1):
        for fault in (Fault.REFUSE, Fault.LOSE_REPLY):
            ask(backend.delete_prefix("_quarantine"))
            view = FaultyBackend(backend, {number: fault}, reads=True)
            run = opened(view)
            try:
                outcomes.add(value_of(load(run).result()))
            except TransientStorageError:
                outcomes.add("raised")
                assert marks(backend) == []
            assert [entry.step for entry in run.known.all()][:2] == [1, 2]
            assert marks(backend) in ([], ["_quarantine/3"] if damaged else [])
    # Only the mark itself may fail without failing the load.
    assert outcomes == ({"raised", 2} if damaged else {"raised"})


def test_a_death_while_marking_leaves_a_run_that_falls_back_again():
    place = f"memory://run-{uuid.uuid4().hex}/job"
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 2)
    for fault in (Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE):
        ask(backend.delete_prefix("_quarantine"))
        view = FaultyBackend(backend, {1: fault})
        response = load(opened(view))
        if fault is Fault.CRASH:
            with pytest.raises(SimulatedCrash):
                response.result()
        else:
            assert value_of(response.result()) == 1
        assert [(call.operation, call.key) for call in view.calls] == [("put", "_quarantine/2")]
        assert marks(backend) == (["_quarantine/2"] if fault is Fault.LOSE_REPLY else [])
        again = training.Checkpointer(place)
        assert value_of(again.load(fallback=True)) == 1
        assert again.last_load.skipped[0].step == 2


def test_storage_that_takes_no_mark_stops_no_load_and_the_step_is_saved_anew():
    place = f"memory://run-{uuid.uuid4().hex}/job"
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 2)

    class ReadOnly(FaultyBackend):
        async def put(self, key, data, **how):
            raise StoragePermissionError("read-only", key=key, root=self.root)

    run = opened(ReadOnly(backend))
    response = load(run)
    assert value_of(response.result()) == 1
    assert [one.step for one in response.report.skipped] == [2]
    run.known.reload()
    assert run.known.latest.step == 1  # this process goes on knowing it
    assert marks(backend) == []


def test_where_another_job_writes_a_reader_leaves_no_mark(place):
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 2)
    run = opened(backend)

    async def yes():
        return True

    run.quarantine._written_elsewhere = yes
    assert value_of(load(run).result()) == 1
    assert run.known.latest.step == 1
    assert marks(backend) == []
    assert training.Checkpointer(place).latest.step == 2


@pytest.mark.parametrize("call", [1, 2])
def test_a_step_that_is_saved_anew_while_it_is_marked_is_not_quarantined(call):
    """The reader sleeps before its put; the writer replaces the step meanwhile."""
    place = f"memory://run-{uuid.uuid4().hex}/job"
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 2)
    first, last = reads_of_a_load(backend)
    ask(backend.delete_prefix("_quarantine"))
    reads = call == 2
    pause = last - 1 if reads else 1  # before the last look at the record, or before the put
    view = FaultyBackend(backend, {pause: Fault.PAUSE}, reads=reads)
    response = load(opened(view))
    ask(view.reached.wait())
    with training.Checkpointer(place) as writer:
        assert writer.save(2, state(2), overwrite=True)
    get_loop().call_soon(view.resume.set)
    assert value_of(response.result()) == 1
    fresh = training.Checkpointer(place)
    assert (fresh.latest.step, dict(fresh.quarantined)) == (2, {})
    assert value_of(fresh.load(fallback=True)) == 2
    with training.Checkpointer(place) as writer:
        writer.save(3, state(3))
    assert marks(backend) == []


def test_a_run_without_a_good_step_says_so_and_marks_nothing(place):
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 1)
    damage(backend, 2)
    run = training.Checkpointer(place)
    with pytest.raises(NoGoodStepError, match=r"step 2 is damaged(?s:.*)step 1 is damaged") as told:
        run.load(fallback=True)
    assert not isinstance(told.value, FileNotFoundError)  # who begins anew catches that
    assert [one.step for one in told.value.skipped] == [2, 1]
    assert len(told.value.__cause__.exceptions) == 2
    assert marks(backend) == []
    assert run.last_load is None
    assert steps(training.Checkpointer(place)) == [1, 2]


def test_an_empty_run_has_no_step_to_fall_back_to(place):
    with pytest.raises(StepNotFoundError):
        training.Checkpointer(place).load(fallback=True)


def test_it_begins_with_the_step_that_is_asked_for(place):
    save(place, 1, 2, 3)
    damage(open_backend(place), 2)
    run = training.Checkpointer(place)
    assert value_of(run.load(2, fallback=True)) == 1
    assert value_of(run.load(fallback=True)) == 3
    assert run.last_load.skipped == ()
    for number in (0, 7):
        with pytest.raises(StepNotFoundError):
            run.load(number, fallback=True)
    with pytest.raises(DamagedCheckpointError) as told:
        run.load(2)
    assert any("fallback=True" in note for note in told.value.__notes__)


def test_a_load_that_takes_too_long_is_not_a_damaged_step(place):
    save(place, 1, 2)
    run = opened(open_backend(place))

    async def read(name):
        await asyncio.sleep(60)

    response = run.loading.start(None, read, fallback=True, deadline=0.01)
    with pytest.raises(TimeoutError, match="2 took longer than 0.01 s"):
        response.result()
    assert marks(run.directory.backend) == []


def test_items_fall_back_as_one_and_a_response_has_its_report(place):
    with training.Checkpointer(place) as run:
        for step in (1, 2):
            run.save_checkpointables(step, {"model": state(step), "extra": {"a": step}})
    backend = open_backend(place)
    (key,) = [key for key in files_of(backend, "2") if key.endswith("extra/_TREE.json")]
    ask(backend.delete(key))
    response = training.Checkpointer(place).load_checkpointables_async(fallback=True)
    found = response.result()
    assert (value_of(found["model"]), found["extra"]) == (1, {"a": 1})
    (skipped,) = response.report.skipped
    assert (skipped.problem, skipped.file) == ("incomplete", "extra/_TREE.json")
    with pytest.raises(KeyError, match="no item 'other'"):
        training.Checkpointer(place).load_checkpointables(None, {"other": None}, fallback=True)


def test_a_target_that_does_not_fit_is_the_callers(place):
    save(place, 1, 2)
    with pytest.raises(TreeMismatchError):
        training.Checkpointer(place).load(None, {"other": np.zeros(3)}, fallback=True)
    assert marks(open_backend(place)) == []


def test_a_mark_tells_what_was_found_by_whom(place):
    save(place, 1, 2)
    backend = open_backend(place)
    damage(backend, 2)
    training.Checkpointer(place).load(fallback=True)
    mark = QuarantineMark.from_bytes(ask(backend.get("_quarantine/2")))
    assert (mark.problem, mark.error) == ("damaged", "DamagedCheckpointError")
    assert mark.file == "state/_TREE.json"
    told = training.Checkpointer(place).quarantined[2]
    assert told.found_by == f"{mark.by.host}, process {mark.by.pid}"
    assert told.found is not None


def test_orbaxs_step_that_lacks_an_item_is_passed_over_and_can_be_saved(tmp_path):
    """What holdfast writes is Orbax's without our own files."""
    place = str(tmp_path / "job")
    save(place, 1, 2)
    for name in ("_COMMIT.json", "_MANIFEST.jsonl", "_ATTEMPT.json"):
        (tmp_path / "job/2" / name).unlink(missing_ok=True)
    assert training.Checkpointer(place).latest.step == 2
    (tmp_path / "job/2/state").rename(tmp_path / "elsewhere")
    run = training.Checkpointer(place)
    assert value_of(run.load(fallback=True)) == 1
    assert (run.latest.step, run.quarantined[2].problem) == (1, "incomplete")
    run.reload()
    assert run.latest.step == 1
    assert run.save(2, state(2))
    assert value_of(run.load()) == 2
    with pytest.raises(StepAlreadyExistsError):
        run.save(2, state(2))
    run.close()


def test_an_error_of_the_disk_is_not_taken_for_damage():
    from holdfast_checkpointer.arrays import failures
    from holdfast_storage import KvTarget

    target = KvTarget({"driver": "memory"}, {}, None)
    for text, kind in {
        "UNKNOWN: Error reading: Input/output error": StorageError,
        "INTERNAL: something": StorageError,
        "RESOURCE_EXHAUSTED: out of memory": StorageFullError,
        "UNAVAILABLE: try again": TransientStorageError,
        "NOT_FOUND: no such chunk": DamagedCheckpointError,
        "DATA_LOSS: CRC-32C": DamagedCheckpointError,
        "OUT_OF_RANGE: short": DamagedCheckpointError,
    }.items():
        with pytest.raises(StorageError) as caught, failures.reading("['w']", "here", target):
            raise ValueError(text)
        assert type(caught.value) is kind, text
    assert issubclass(IncompleteCheckpointError, DamagedCheckpointError)
