"""The processes of a job that use one run: simulated by threads, over a store in memory."""

import concurrent.futures
import uuid

import pytest

from holdfast_checkpointer.multihost import errors
from holdfast_checkpointer.multihost.coordinator import Coordinator
from holdfast_checkpointer.multihost.errors import (
    DisagreementError,
    FailureReport,
    RemoteProcessError,
)
from holdfast_checkpointer.multihost.memory_service import MemoryService
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.engine.job import Job
from holdfast_manager.engine.run import Run, RunSettings
from holdfast_manager.errors import (
    NoGoodStepError,
    StepBeingReadError,
    StepNotFoundError,
    StepPinnedError,
)
from holdfast_manager.policies.preservation_policies import PreserveAll
from holdfast_manager.policies.save_decision_policies import InitialSavePolicy
from holdfast_storage import DamagedCheckpointError, TransientStorageError


class Processes:
    """The same in each of a few simulated processes."""

    def __init__(self, count, primary=0):
        self.service = MemoryService()
        self.primary = primary
        self.count = count
        self._pool = concurrent.futures.ThreadPoolExecutor(count)

    def coordinator(self, me):
        return Coordinator(
            self.service, me=me, processes=range(self.count), primary=self.primary, deadline_s=20
        )

    def each(self, part):
        """What `part(me)` returned or raised in each."""
        futures = [self._pool.submit(part, me) for me in range(self.count)]
        return [future.exception(30) or future.result() for future in futures]


class Nothing:
    def news(self):
        return None

    def take(self, news):
        pass


@pytest.fixture(params=[(2, 0), (3, 1)], ids=["two", "three"])
def processes(request):
    return Processes(*request.param)


@pytest.fixture
def jobs(processes):
    place = f"runs/{uuid.uuid4().hex}"
    return [Job(processes.coordinator(me), place, Nothing()) for me in range(processes.count)]


@pytest.fixture
def place():
    return f"memory://run-{uuid.uuid4().hex}/job"


def test_one_process_decides_by_what_all_say_and_all_hear_it(processes, jobs):
    asked = []

    def decide(said):
        asked.append(said)
        return {"sum": sum(said.values())}

    for _ in range(3):
        found = processes.each(lambda me: jobs[me].turn("save(1)", decide, said=me + 1))
        assert found == [{"sum": sum(range(processes.count + 1))}] * processes.count
    assert len(asked) == 3
    assert processes.service.keys == []


def test_different_calls_are_an_error_that_names_them_and_the_next_turn_works(processes, jobs):
    found = processes.each(lambda me: jobs[me].turn(f"save({min(me, 1)})", lambda _: 1))
    for error in found:
        assert isinstance(error, DisagreementError)
        assert "process 0 called save(0)" in str(error)
        assert "called save(1)" in str(error)
    assert processes.each(lambda me: jobs[me].turn("wait()", lambda _: 1)) == [1] * processes.count


def test_what_a_process_has_to_raise_is_raised_by_all_and_nothing_is_decided(processes, jobs):
    last = processes.count - 1
    failed = OSError("the disk is full")

    def decide(said):
        raise AssertionError

    def part(me):
        return jobs[me].turn("save(2)", decide, failed=failed if me == last else None)

    *others, own = processes.each(part)
    assert own is failed
    for error in others:
        assert isinstance(error, RemoteProcessError)
        assert isinstance(error, OSError)
        assert error.process == last
        assert "the disk is full" in str(error)


def test_the_cause_is_told_rather_than_what_it_made_others_raise(jobs, processes):
    about = RemoteProcessError("the save", FailureReport(1, "the write", "OSError", "full"))
    last = processes.count - 1
    later = KeyError("mine")

    def part(me):
        failed = OSError("full") if me == last else about if me == 1 else None
        return jobs[me].turn("save(2)", lambda _: 1, failed=failed, late=lambda: later)

    found = processes.each(part)
    assert found[0] is later
    assert str(found[last]) == "full"


def test_what_the_primary_finds_out_about_the_run_is_the_same_error_everywhere(processes, jobs):
    def decide(said):
        raise StepPinnedError(3, ["best", "paper"], "runs/x")

    for error in processes.each(lambda me: jobs[me].turn("delete(3)", decide)):
        assert type(error) is StepPinnedError
        assert str(error) == str(StepPinnedError(3, ["best", "paper"], "runs/x"))
        assert (error.step, error.names) == (3, ["best", "paper"])

    def mistaken(said):
        raise ZeroDivisionError("in a policy")

    found = processes.each(lambda me: jobs[me].turn("save(3)", mistaken))
    assert all(isinstance(error, ZeroDivisionError) for error in found)
    remote = [isinstance(error, RemoteProcessError) for error in found]
    assert remote.count(False) == 1


def test_who_leaves_by_an_error_is_heard_of_at_the_next_call(processes, jobs):
    last = processes.count - 1

    def part(me):
        if me == last:
            return jobs[me].leave(FloatingPointError("the loss is NaN"))
        return jobs[me].turn("save(4)", lambda _: 1)

    *others, _ = processes.each(part)
    for error in others:
        assert isinstance(error, RemoteProcessError)
        assert "the training, which it has left" in str(error)
        assert "the loss is NaN" in str(error)


@pytest.mark.parametrize("kind", sorted(errors._ALIKE.values(), key=lambda kind: kind.__name__))
def test_every_error_about_a_run_can_be_made_again_from_what_is_told(kind):
    made = kind.__new__(kind)
    made.args = ("step 3 of runs/x is so",)
    made.step, made.names, made.cause_of_it = 3, ["a"], object()
    report = FailureReport.from_bytes(FailureReport.of(made, 1, "the decision").to_bytes())
    again = report.as_error("save(3)")
    assert type(again) is kind
    assert str(again) == "step 3 of runs/x is so"
    assert (again.step, again.names) == (3, ["a"])


@pytest.fixture
def runs(processes, place):
    with training.Checkpointer(place) as run:
        for step in (1, 2, 3):
            run.save(step, {"step": step}, metrics={"loss": 1 / step})
    settings = RunSettings(InitialSavePolicy(), PreserveAll())
    context = Context()

    def opened(me):
        backend = context.open_backend(place)
        label = backend.root
        return Run(
            backend, context, settings, lambda view: Job(processes.coordinator(me), label, view)
        )

    return processes.each(opened)


def known(runs):
    return [[(entry.step, entry.name, entry.ours) for entry in run.known.all()] for run in runs]


def same(found):
    assert all(one == found[0] for one in found)
    return found[0]


def test_only_the_primary_lists_and_all_know_the_same(processes, runs, place):
    assert [step for step, _, _ in same(known(runs))] == [1, 2, 3]
    with training.Checkpointer(place) as other:
        other.save(4, {"step": 4})
        other.delete(2)
    processes.each(lambda me: runs[me].reload())
    assert [step for step, _, _ in same(known(runs))] == [1, 3, 4]
    newest = processes.each(lambda me: runs[me].loading.resolve(None).step)
    assert newest == [4] * processes.count
    times = [run.known.latest.time for run in runs]
    assert len(set(times)) == 1


def test_a_step_that_the_primary_removes_is_gone_for_all(processes, runs):
    removed = processes.each(lambda me: runs[me].saver.delete(2, None, missing_ok=False).result())
    assert removed == [True] * processes.count
    assert [step for step, _, _ in same(known(runs))] == [1, 3]
    again = processes.each(lambda me: runs[me].saver.delete(2, None, missing_ok=True).result())
    assert again == [False] * processes.count
    for error in processes.each(lambda me: runs[me].saver.delete(2, None, missing_ok=False)):
        assert type(error) is StepNotFoundError
    assert (
        processes.each(lambda me: runs[me].saver.decisions.would_save(9))
        == [False] * processes.count
    )
    assert processes.each(lambda me: runs[me].saver.close()) == [None] * processes.count
    assert processes.service.keys == []


def test_a_removal_that_the_primary_cannot_do_leaves_the_step_known_to_all(processes, runs, place):
    with training.Checkpointer(place).reading(2):
        found = processes.each(lambda me: runs[me].saver.delete(2, None, missing_ok=False).result())
    assert [type(error) for error in found] == [StepBeingReadError] * processes.count
    assert [step for step, _, _ in same(known(runs))] == [1, 2, 3]


def damaged(name):
    return DamagedCheckpointError("a byte differs", file="state/d/1", key=name)


def test_damage_that_one_process_reads_makes_all_fall_back(processes, runs):
    def load(me):
        async def read(name):
            if me == processes.count - 1 and name == "3":
                raise damaged(name)
            return name

        response = runs[me].loading.start(None, read, fallback=True, deadline=20)
        return response.result(), response.report

    found = processes.each(load)
    assert {name for name, _ in found} == {"2"}
    told = [[(one.step, one.problem, one.reason) for one in report.skipped] for _, report in found]
    assert same(told)[0][:2] == (3, "damaged")
    processes.each(lambda me: runs[me].reload())
    assert [step for step, _, _ in same(known(runs))] == [1, 2]
    marked = [[(one.entry.step, one.told.file) for one in run.known.all_aside()] for run in runs]
    assert same(marked) == [(3, "state/d/1")]


def test_where_every_step_is_damaged_for_somebody_all_say_that_there_is_no_good_one(
    processes, runs
):
    def load(me):
        async def read(name):
            if int(name) % processes.count == me:
                raise damaged(name)
            return name

        return runs[me].loading.start(None, read, fallback=True, deadline=20).result()

    for error in processes.each(load):
        assert isinstance(error, NoGoodStepError)
        assert [one.step for one in error.skipped] == [3, 2, 1]


def test_what_may_pass_for_one_process_is_raised_by_all(processes, runs):
    def load(me):
        async def read(name):
            if me == 1:
                raise TransientStorageError("503", key=name)
            return name

        return runs[me].loading.start(None, read, fallback=True, deadline=20).result()

    found = processes.each(load)
    assert isinstance(found.pop(1), TransientStorageError)
    for error in found:
        assert isinstance(error, RemoteProcessError)
        assert error.error == "TransientStorageError"
        assert "no older one was loaded" in str(error)
    assert [step for step, _, _ in same(known(runs))] == [1, 2, 3]
