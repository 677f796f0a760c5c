"""Any sequence of saves, faults, deaths, removals and strays keeps what was reported."""

import contextlib
import dataclasses
import itertools
import sys
import tempfile
import uuid
from dataclasses import dataclass
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from holdfast_checkpointer.args import JsonSave
from holdfast_checkpointer.options import Context
from holdfast_manager import training
from holdfast_manager.errors import (
    PinExistsError,
    PinNotFoundError,
    StepAlreadyExistsError,
    StepNotFoundError,
    StepPinnedError,
)
from holdfast_manager.policies import preservation_policies as keep
from holdfast_manager.policies.save_decision_policies import (
    ContinuousCheckpointingPolicy,
    FixedIntervalPolicy,
)
from holdfast_metadata import PINS_DIR, Pin, parse_json
from holdfast_storage import (
    CommitUnknownError,
    StorageError,
    get_loop,
    keys,
    open_backend,
)
from holdfast_storage.commit import list_committed, read_record, reading
from holdfast_storage.testing.faulty import Fault, SimulatedCrash
from holdfast_storage.testing.history import litter
from holdfast_storage.testing.processes import Processes
from holdfast_storage.testing.tables import TableBackend


def quality(metrics):
    return metrics["quality"]


STEP_BYTES = 420  # about what one step takes
POLICIES = [
    keep.PreserveAll(),
    keep.LatestN(1),
    keep.LatestN(2),
    keep.LatestN(0),
    keep.EveryNSteps(2, max_to_keep=2),
    keep.BestN(get_metric_fn=quality, n=1),
    keep.AnyPreservationPolicy([keep.LatestN(1), keep.EveryNSteps(3)]),
    keep.DiskBudget(3 * STEP_BYTES),
]
PROCESSES = st.sampled_from(["one", "two"])
FAULTS = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 24), st.sampled_from([Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE])),
)
PINS = st.sampled_from(["paper", "demo"])


@dataclass(frozen=True)
class Saved:
    """A committed step as the model has it; policies see it as they see a real one."""

    step: int
    version: int
    metrics: dict
    size_bytes: int


@dataclass
class Running:
    """A process that has opened the run."""

    view: object
    run: training.Checkpointer
    policy: keep.PreservationPolicy
    interval: int


class RunMachine(RuleBasedStateMachine):
    """Two processes with one run; `there` is what must be in it."""

    open_store = None

    def __init__(self):
        super().__init__()
        self.cleanup = contextlib.ExitStack()
        self.store = type(self).open_store()
        self.processes = Processes(self.store)
        self.cleanup.enter_context(self.processes.known_to_the_system())
        self.versions = itertools.count(10_000_000)  # all of one length
        self.there = {}
        self.pins = {}
        self.strays = {}
        self.live = {}
        self.writer = None

    # --- what is there ---------------------------------------------------------------

    def ask(self, coroutine):
        return get_loop().run(coroutine)

    def look(self):
        """The committed steps, whole, read from the storage itself."""
        return {int(name): found for name, found in self.ask(self._look()).items()}

    async def _look(self):
        async def read(area):
            await area.check()
            assert area.manifest.by_path.keys() <= set(await area.files())
            value = parse_json(await area.get("x/metadata"), source="x")
            metrics = parse_json(await area.get("metrics/metrics"), source="metrics")
            size = sum(entry.size for entry in area.manifest.entries)
            return Saved(value["step"], value["version"], metrics, size)

        listing = await list_committed(self.store, "")
        return {
            entry.name: await reading(self.store, entry.name, read)
            for entry in listing.committed
            if int(entry.name) < 90  # the others are copies that were cut short
        }

    def stored_pins(self):
        async def read():
            listing = await self.store.children(PINS_DIR)
            return [
                Pin.from_bytes(await self.store.get(info.key), source=info.key)
                for info in listing.objects
            ]

        return {pin.name: pin.step for pin in self.ask(read())}

    def open(self, policy=None, when=None):
        view = self.processes.start()
        with mock.patch.object(Context, "open_backend", return_value=view):
            run = training.Checkpointer(
                "memory://unused", preservation_policy=policy, save_decision_policy=when
            )
        return view, run

    def pick(self, who):
        """That process, or the other if it is not running."""
        return who if who in self.live else next(iter(self.live))

    def write_as(self, who):
        """A process that goes on with what another one wrote looks at it first."""
        if self.writer != who:
            self.live[who].run.reload()
            self.writer = who
        return self.live[who]

    def settle(self, who):
        """After a fault: the process has died of it, or goes on without."""
        self.live[who].view.faults = {}  # first: what runs behind may come upon it
        if self.live[who].view.crashed:
            self.bury(who)

    def bury(self, who):
        """Forgets a process that died."""
        running = self.live.pop(who)
        assert running.view.crashed
        with contextlib.suppress(SimulatedCrash, StorageError):
            running.run.wait()

    # --- processes -------------------------------------------------------------------

    @initialize(
        policy=st.sampled_from(POLICIES),
        interval=st.sampled_from([1, 1, 2]),
        pinned=st.booleans(),
    )
    def begin(self, policy, interval, pinned):
        self.start("one", policy, interval)
        for rank in (5, 3):
            self.save_next("one", rank, None)
            if pinned and rank == 5:
                self.pin("one", "paper", 0, None, undo=False)
        self.start("two", policy, interval)

    @rule(
        who=PROCESSES,
        policy=st.sampled_from(POLICIES),
        interval=st.sampled_from([1, 1, 2]),
        killed=st.booleans(),
    )
    def start(self, who, policy, interval, killed=False):
        """Starts a process; the one in its place ends, well or not."""
        if who in self.live and killed:
            self.live[who].view.die()
            self.bury(who)
        elif who in self.live:
            self.live[who].run.close()
            self.live.pop(who).view.die()
        when = ContinuousCheckpointingPolicy() if interval == 1 else FixedIntervalPolicy(interval)
        view, run = self.open(policy, when)
        self.live[who] = Running(view, run, policy, interval)
        self.writer = None
        assert [entry.step for entry in run.checkpoints] == sorted(self.there)

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES)
    def reload(self, who):
        run = self.live[self.pick(who)].run
        run.reload()
        assert [entry.step for entry in run.checkpoints] == sorted(self.there)
        for entry in run.checkpoints:
            saved = self.there[entry.step]
            assert run.load_checkpointables(entry)["x"] == value(saved)
            assert (entry.metrics, entry.size_bytes) == (saved.metrics, saved.size_bytes)

    # --- saves -----------------------------------------------------------------------

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES, rank=st.integers(0, 9), fault=FAULTS)
    def save_next(self, who, rank, fault):
        """What a training loop does, step by step."""
        who = self.pick(who)
        ahead = self.live[who].interval
        self.save(who, ahead, rank, force=True, overwrite=False, background=False, fault=fault)

    @precondition(lambda self: self.live)
    @rule(
        who=PROCESSES,
        ahead=st.integers(-3, 2),
        rank=st.integers(0, 9),
        force=st.booleans(),
        overwrite=st.booleans(),
        background=st.booleans(),
        fault=FAULTS,
    )
    def save(self, who, ahead, rank, force, overwrite, background, fault):
        """Saves a step near the newest one, and collects what its policy does not keep."""
        who = self.pick(who)
        running, before = self.write_as(who), dict(self.there)
        step = max(0, max(self.there, default=0) + ahead)
        known = {entry.step for entry in running.run.checkpoints}
        new = Saved(step, next(self.versions), {"quality": rank}, STEP_BYTES)
        if fault:
            running.view.fail_at(*fault)
        outcome = self.attempt(running, new, force, overwrite, background)
        found = self.look()
        after = dict(before)
        if outcome == "committed":
            after[step] = found.get(step, new)
        elif outcome == "unknown" and step in found:
            assert found[step].version in (new.version, *(s.version for s in before.values()))
            after[step] = found[step]
        elif outcome != "unknown":
            assert found == before
            self.check_refusal(outcome, running, known, step, force, overwrite)
        assert step not in found or found[step] == after[step]
        exact = outcome == "committed" and not fault
        self.check_collected(running, known | {step}, after, found, exact=exact)
        self.there = found
        self.settle(who)

    def attempt(self, running, new, force, overwrite, background):
        """Saves; says `committed`, `declined`, `unknown`, or the error it was refused with."""
        items, run = {"x": JsonSave(value(new))}, running.run
        known = {entry.step for entry in run.checkpoints}
        try:
            response = run.save_checkpointables_async(
                new.step, items, force=force, overwrite=overwrite, metrics=new.metrics
            )
            if background:  # not listed before it is committed
                listed = {entry.step for entry in run.checkpoints} - known
                assert listed <= self.look().keys()
            saved = response.result()
            run.wait()
        except (SimulatedCrash, CommitUnknownError):
            return "unknown"
        except (FileExistsError, StepPinnedError, StorageError) as error:
            return type(error)
        if not saved:
            assert saved.reason
            return "declined"
        return "committed"

    def check_refusal(self, outcome, running, known, step, force, overwrite):
        latest = max(known, default=-1)
        if outcome == "declined":
            assert not force
            older = step < latest or (step == latest and not overwrite)
            assert older or step % running.interval
        elif outcome is StepAlreadyExistsError:
            assert step in self.there
            assert not overwrite
        elif outcome is StepPinnedError:
            assert overwrite
            assert step in self.pins.values()
        elif issubclass(outcome, FileExistsError):
            assert step in self.there
            assert not overwrite
        else:
            assert running.view.faults

    def check_collected(self, running, known, before, found, *, exact):
        """What is gone is what the policy lets go, by what the process knew; never more."""
        gone = before.keys() - found.keys()
        assert found.items() <= before.items()
        seen = [before[step] for step in sorted(known & before.keys())]
        protected = {step: ["pinned"] for step in self.pins.values()}
        if seen:
            protected[seen[-1].step] = ["newest"]
        context = keep.PreservationContext(protected=protected)
        answers = running.policy.should_preserve(seen, context=context)
        surplus = {
            entry.step
            for entry, kept in zip(seen, answers, strict=True)
            if not kept and entry.step not in protected
        }
        assert gone <= surplus, f"{gone} is gone; {running.policy} lets {surplus} go"
        assert not before or max(before) in found
        assert gone == surplus or not exact

    @precondition(lambda self: self.live and self.there)
    @rule(who=PROCESSES, rank=st.integers(0, 9))
    def explain(self, who, rank):
        """What `explain` says is what the next commit does, if it adds no step."""
        who = self.pick(who)
        running = self.write_as(who)
        running.run.reload()
        told = running.run.explain()
        assert [verdict.step for verdict in told] == sorted(self.there)
        assert self.look() == self.there
        newest = self.there[max(self.there)]
        again = dataclasses.replace(newest, version=next(self.versions))
        outcome = self.attempt(running, again, force=True, overwrite=True, background=False)
        found = self.look()
        if outcome is StepPinnedError:
            assert newest.step in self.pins.values()
            assert found == self.there
            return
        assert outcome == "committed"
        assert found[newest.step].version == again.version
        assert found.keys() == {verdict.step for verdict in told if verdict.kept}
        assert all(running.run.explain())
        self.there = found

    # --- removals and pins -------------------------------------------------------------

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES, back=st.integers(0, 3), fault=FAULTS)
    def delete(self, who, back, fault):
        """Removes a step by name."""
        who = self.pick(who)
        running = self.write_as(who)
        step = max(0, max(self.there, default=0) - back)
        if fault:
            running.view.fail_at(*fault)
        refused = None
        try:
            running.run.delete(step)
        except SimulatedCrash:
            refused = SimulatedCrash
        except (StepPinnedError, StepNotFoundError, StorageError) as error:
            refused = type(error)
        found = self.look()
        expected = {number: saved for number, saved in self.there.items() if number != step}
        if refused is None:
            assert step in self.there
            assert step not in self.pins.values()
            assert found == expected
        elif fault and refused not in (StepPinnedError, StepNotFoundError):
            assert found in (self.there, expected)
        else:
            assert found == self.there
            if refused is StepPinnedError:
                assert step in self.pins.values()
            else:
                assert issubclass(refused, FileNotFoundError)
                assert step not in self.there
        self.there = found
        self.settle(who)
        if who in self.live:
            assert (step in {entry.step for entry in running.run.checkpoints}) <= (step in found)

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES, name=PINS, back=st.integers(0, 3), fault=FAULTS, undo=st.booleans())
    def pin(self, who, name, back, fault, undo):
        """Pins a step, or takes a pin back."""
        if undo:
            self.unpin(who, name, fault)
            return
        who = self.pick(who)
        running = self.live[who]
        step = max(0, max(self.there, default=0) - back)
        if fault:
            running.view.fail_at(*fault)
        with_it = {**self.pins, name: step}
        try:
            running.run.pin(step, name)
        except StepNotFoundError:
            assert step not in self.there
            expected = [self.pins]
        except PinExistsError:
            assert self.pins[name] != step
            expected = [self.pins]
        except (SimulatedCrash, StorageError):
            assert fault
            expected = [self.pins, with_it]
        else:
            assert step in self.there
            expected = [with_it]
        assert self.stored_pins() in expected
        self.pins = self.stored_pins()
        self.settle(who)

    def unpin(self, who, name, fault):
        who = self.pick(who)
        running = self.live[who]
        if fault:
            running.view.fail_at(*fault)
        without = {other: step for other, step in self.pins.items() if other != name}
        try:
            running.run.unpin(name)
        except PinNotFoundError:
            assert name not in self.pins
            expected = [self.pins]
        except (SimulatedCrash, StorageError):
            expected = [self.pins, without]
        else:
            assert name in self.pins
            expected = [without]
        assert self.stored_pins() in expected
        self.pins = self.stored_pins()
        self.settle(who)

    # --- strays ------------------------------------------------------------------------

    @rule(key=st.sampled_from(["notes.txt", "77/readme", "78/x/deep/file", "07/x", ".hidden/x"]))
    def stray(self, key):
        """Somebody leaves something that is no step."""
        self.strays[key] = b"foreign"
        self.ask(self.store.put(key, b"foreign"))

    @precondition(lambda self: self.there)
    @rule(back=st.integers(0, 3), to=st.integers(90, 92))
    def copy_cut_short(self, back, to):
        """Somebody copies a step, and the copy ends before its last file."""
        source = str(max(0, max(self.there) - back))
        if int(source) not in self.there or any(key.startswith(f"{to}/") for key in self.strays):
            return

        async def copy():
            data = keys.join(source, (await read_record(self.store, source)).record.data)
            for info in [info async for info in self.store.walk(source)]:
                replaced = "attempt-" in info.key and not keys.is_under(info.key, data)
                if replaced or info.key.endswith("x/metadata"):
                    continue
                key = keys.join(str(to), keys.relative(info.key, source))
                self.strays[key] = await self.store.get(info.key)
                await self.store.put(key, self.strays[key])

        self.ask(copy())

    # --- what holds at all times ---------------------------------------------------------

    @invariant()
    def a_fresh_process_lists_what_is_there(self):
        _, run = self.open()
        assert [entry.step for entry in run.checkpoints] == sorted(self.there)

    @invariant()
    def pinned_steps_and_strays_stay(self):
        assert self.stored_pins() == self.pins
        for key, data in self.strays.items():
            assert self.ask(self.store.get(key)) == data

    def teardown(self):
        try:
            for running in self.live.values():
                running.run.close()
                running.view.die()
            self.live = {}
            if sys.exc_info() == (None, None, None):  # nothing has failed yet
                self.check_nothing_is_left()
        finally:
            self.cleanup.close()

    def check_nothing_is_left(self):
        """The next process that saves, and one more sweep, leave steps and strays."""
        _, run = self.open()
        last = Saved(max(self.there, default=0) + 1, next(self.versions), {"quality": 0}, 0)
        with run:
            assert run.save_checkpointables(
                last.step, {"x": JsonSave(value(last))}, metrics=last.metrics
            )
        found = self.look()
        assert found == {**self.there, last.step: found[last.step]}

        left = [key for key in self.ask(litter(self.store)) if key not in self.strays]
        assert [key for key in left if not keys.is_under(key, PINS_DIR)] == []
        assert self.look() == found


def value(saved):
    return {"step": saved.step, "version": saved.version}


def behind_a_network(store):
    """Where requests are round trips, a run has hints of its committed steps."""
    store.hints = dataclasses.replace(store.hints, round_trips=True)
    return store


STORES = {  # and how many sequences are tried on each
    "pointer": (lambda: behind_a_network(TableBackend()), 14),
    "rename": (lambda: TableBackend(rename=True, exchange=True), 14),
    "decided": (lambda: behind_a_network(TableBackend(decided=True)), 8),
    "memory": (lambda: open_backend(f"memory://machine-{uuid.uuid4().hex}/run"), 4),
    "local": (lambda: open_backend(tempfile.mkdtemp(dir=SCRATCH[0])), 5),
}
SCRATCH = []
BRIEF = settings(
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # with Phase.shrink a failure takes minutes, and becomes shorter
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", list(STORES))
def test_any_sequence_keeps_what_was_reported(kind, tmp_path):
    SCRATCH[:] = [tmp_path]

    class Machine(RunMachine):
        open_store = staticmethod(STORES[kind][0])

    run_state_machine_as_test(Machine, settings=settings(BRIEF, max_examples=STORES[kind][1]))
