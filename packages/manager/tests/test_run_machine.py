"""Any sequence of saves, faults, deaths, removals and strays keeps what was reported."""

import contextlib
import dataclasses
import datetime
import functools
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
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.errors import (
    PinExistsError,
    PinNotFoundError,
    StepAlreadyExistsError,
    StepBeingReadError,
    StepNotFoundError,
    StepNotInTrashError,
    StepPinnedError,
)
from holdfast_manager.policies import preservation_policies as keep
from holdfast_manager.policies.save_decision_policies import (
    ContinuousCheckpointingPolicy,
    FixedIntervalPolicy,
)
from holdfast_metadata import PINS_DIR, QUARANTINE_DIR, Pin, parse_json
from holdfast_storage import (
    CommitUnknownError,
    DamagedCheckpointError,
    LeaseHeldError,
    LeaseLostError,
    StorageError,
    get_loop,
    keys,
    open_backend,
)
from holdfast_storage.commit import list_committed, read_record, reading
from holdfast_storage.lease import ProcessLeases
from holdfast_storage.lease.epochs import list_epochs, read_epoch
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
TRASH = training.Trash(keep_for=datetime.timedelta(days=1))  # longer than any sequence takes
NOT_REMOVED = (StepPinnedError, StepBeingReadError, StepNotFoundError)
LEASE_ERRORS = (LeaseHeldError, LeaseLostError)


@dataclass(frozen=True)
class Saved:
    """A committed step as the model has it; policies see it as they see a real one."""

    step: int
    version: int
    metrics: dict
    size_bytes: int


class Leases(ProcessLeases):
    """The leases of one of the processes, which remembers all that it ever had."""

    def __init__(self):
        super().__init__()
        self.ever = []

    def add(self, held):
        self.ever.append(held)
        super().add(held)

    def settle(self):
        """Waits until what is being released says so."""
        for held in self.ever:
            held.join()


@dataclass
class Running:
    """A process that has opened the run.

    Attributes:
        epoch: That under which it writes; None before its first write.
        up_to_date: Whether it has seen the run since it took that.
        aside: Steps that it takes for damaged, and which attempt of each.
    """

    view: object
    run: training.Checkpointer
    leases: Leases
    policy: keep.PreservationPolicy
    interval: int
    trash: bool
    takeover: bool
    epoch: int | None = None
    up_to_date: bool = False
    aside: dict = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Damaged:
    """A step of which somebody has changed a byte.

    Attributes:
        attempt: The attempt; another one at that step is none of this.
        saved: What it was.
        key: The file.
        data: Its bytes before that.
    """

    attempt: str
    saved: Saved
    key: str
    data: bytes


class RunMachine(RuleBasedStateMachine):
    """Two processes with one run.

    Attributes:
        there: What must be in it, damaged or not.
        trash: What can come back, in the order in which it went.
        damaged: Of what is there, what cannot be loaded.
        marked: Of what is damaged, what is marked as such: no fresh process lists it.
        held: The step that somebody reads, and their hold on it.
    """

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
        self.trash = []
        self.damaged = {}
        self.changed = {}  # by attempt
        self.marked = set()
        self.held = None

    # --- what is there ---------------------------------------------------------------

    def ask(self, coroutine):
        return get_loop().run(coroutine)

    def look(self):
        """The committed steps, whole, read from the storage itself."""
        found = {int(name): saved for name, saved in self.ask(self._look()).items()}
        self.damaged = {
            step: was for step, was in self.damaged.items() if found.get(step) == was.saved
        }
        self.marked &= self.damaged.keys()
        return found

    async def _look(self):
        async def read(area):
            await area.check()
            assert area.manifest.by_path.keys() <= set(await area.files())
            value = parse_json(await area.get("x/metadata"), source="x")
            metrics = parse_json(await area.get("metrics/metrics"), source="metrics")
            size = sum(entry.size for entry in area.manifest.entries)
            return Saved(value["step"], value["version"], metrics, size)

        async def look(entry):
            try:
                return await reading(self.store, entry.name, read)
            except DamagedCheckpointError:
                # Also one that was in the trash meanwhile, and has come back as it was.
                was = self.changed[entry.record.attempt]
                self.damaged[int(entry.name)] = was
                return was.saved

        listing = await list_committed(self.store, "")
        return {
            entry.name: await look(entry)
            for entry in listing.committed
            if int(entry.name) < 90  # the others are copies that were cut short
        }

    def listed(self, running=None):
        """What a process lists: what is there and not known to be damaged."""
        aside = set(self.marked)
        if running is not None:
            for step, attempt in running.aside.items():
                was = self.damaged.get(step)
                aside |= {step} if was is not None and was.attempt == attempt else set()
        return sorted(self.there.keys() - aside)

    def in_trash(self):
        """The steps in the trash, as a fresh process tells them."""
        _, run, _ = self.open()
        return [entry.step for entry in run.trash]

    def move_to_trash(self, who, before, found):
        """What left the run by a process that has a trash can come back."""
        if not self.live[who].trash:
            assert self.in_trash() == [saved.step for saved in self.trash]
            return
        gone = {step: saved for step, saved in before.items() if step not in found}
        told = self.in_trash()
        assert sorted(told) == sorted([*(saved.step for saved in self.trash), *gone])
        self.trash += [gone[step] for step in told[len(self.trash) :]]

    # --- who may write -----------------------------------------------------------------

    def newest_lease(self):
        async def read():
            epoch = max(await list_epochs(self.store), default=0)
            return epoch, await read_epoch(self.store, epoch) if epoch else None

        return self.ask(read())

    def forbidden(self, who):
        """The error with which that process's next write is refused, or None."""
        running, (epoch, lease) = self.live[who], self.newest_lease()
        if running.epoch is not None:
            return None if running.epoch == epoch else LeaseLostError
        if lease is None or lease.released or running.takeover:
            return None
        others = [other.view.pid for name, other in self.live.items() if name != who]
        return LeaseHeldError if lease.by.pid in others else None

    def note_lease(self, who, *, wrote):
        """After a write: who has the run now."""
        running = self.live[who]
        running.leases.settle()
        epoch, lease = self.newest_lease()
        if lease is not None and lease.by.pid == running.view.pid and not lease.released:
            running.epoch = epoch
        if wrote:
            assert running.epoch == epoch, "it wrote without the lease"
            running.up_to_date = True

    def stored_pins(self):
        async def read():
            listing = await self.store.children(PINS_DIR)
            return [
                Pin.from_bytes(await self.store.get(info.key), source=info.key)
                for info in listing.objects
            ]

        return {pin.name: pin.step for pin in self.ask(read())}

    def open(self, policy=None, when=None, **options):
        view, leases = self.processes.start(), Leases()
        lease = functools.partial(WritingLease, leases=leases)
        with (
            mock.patch.object(Context, "open_backend", return_value=view),
            mock.patch("holdfast_manager.engine.run.WritingLease", lease),
        ):
            run = training.Checkpointer(
                "memory://unused", preservation_policy=policy, save_decision_policy=when, **options
            )
        return view, run, leases

    def pick(self, who):
        """That process, or the other if it is not running."""
        return who if who in self.live else next(iter(self.live))

    def settle(self, who, *, wrote=False):
        """After a fault: the process has died of it, or goes on without."""
        self.live[who].view.faults = {}  # first: what runs behind may come upon it
        self.note_lease(who, wrote=wrote)
        if self.live[who].view.crashed:
            self.bury(who)

    def bury(self, who):
        """Forgets a process that died."""
        running = self.live.pop(who)
        assert running.view.crashed
        with contextlib.suppress(SimulatedCrash, StorageError):
            running.run.wait()
        running.leases.release_all()  # their threads end; nothing of it reaches the store

    # --- processes -------------------------------------------------------------------

    @initialize(
        policy=st.sampled_from(POLICIES),
        interval=st.sampled_from([1, 1, 2]),
        pinned=st.booleans(),
        trash=st.booleans(),
    )
    def begin(self, policy, interval, pinned, trash):
        self.start("one", policy, interval, trash=trash)
        for rank in (5, 3):
            self.save_next("one", rank, None)
            if pinned and rank == 5:
                self.pin("one", "paper", 0, None, undo=False)
        self.start("two", policy, interval, takeover=True)

    @rule(
        who=PROCESSES,
        policy=st.sampled_from(POLICIES),
        interval=st.sampled_from([1, 1, 2]),
        killed=st.booleans(),
        trash=st.booleans(),
        takeover=st.booleans(),
    )
    def start(self, who, policy, interval, killed=False, trash=False, takeover=False):
        """Starts a process; the one in its place ends, well or not."""
        if who in self.live and killed:
            self.live[who].view.die()
            self.bury(who)
        elif who in self.live:
            self.live[who].run.close()
            self.live[who].leases.settle()
            self.live.pop(who).view.die()
        when = ContinuousCheckpointingPolicy() if interval == 1 else FixedIntervalPolicy(interval)
        view, run, leases = self.open(
            policy, when, trash=TRASH if trash else None, takeover=takeover
        )
        self.live[who] = Running(view, run, leases, policy, interval, trash, takeover)
        assert [entry.step for entry in run.checkpoints] == self.listed()

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES)
    def reload(self, who):
        running = self.live[self.pick(who)]
        run = running.run
        run.reload()
        assert [entry.step for entry in run.checkpoints] == self.listed(running)
        for entry in run.checkpoints:
            saved = self.there[entry.step]
            if entry.step in self.damaged:
                with pytest.raises(DamagedCheckpointError):
                    run.load_checkpointables(entry)
                continue
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
        running, before = self.live[who], dict(self.there)
        forbidden = self.forbidden(who)
        step = max(0, max(self.there, default=0) + ahead)
        known = {entry.step for entry in running.run.checkpoints}
        new = Saved(step, next(self.versions), {"quality": rank}, STEP_BYTES)
        if fault:
            running.view.fail_at(*fault)
        outcome = self.attempt(running, new, force, overwrite, background)
        evidence = self.evidence(running)
        found = self.look()
        after = dict(before)
        if forbidden is not None:  # whatever it is told, it changes nothing
            assert outcome not in ("committed", *self.unknown_without(fault))
            assert found == before
        if outcome == "committed":
            after[step] = found.get(step, new)
        elif outcome == "unknown" and step in found:
            assert found[step].version in (new.version, *(s.version for s in before.values()))
            after[step] = found[step]
        elif outcome != "unknown":
            assert found == before
            self.check_refusal(outcome, running, known, step, force, overwrite, forbidden)
        assert step not in found or found[step] == after[step]
        if not running.up_to_date:  # it looks when it takes the lease
            known = before.keys() - evidence.keys()
        exact = outcome == "committed" and not fault
        self.check_collected(running, known | {step}, after, found, evidence, exact=exact)
        self.move_to_trash(who, before, found)
        self.there = found
        self.settle(who, wrote=outcome == "committed")

    def unknown_without(self, fault):
        """Nobody is told that nothing is known if nothing went wrong."""
        return () if fault else ("unknown",)

    def evidence(self, running):
        """Damaged steps that no policy of that process counts, from before its write."""
        aside = set(self.there) - set(self.listed(running))
        return {step: self.there[step] for step in aside}

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

    def check_refusal(self, outcome, running, known, step, force, overwrite, forbidden):
        latest = max(known, default=-1)
        if outcome == "declined":
            assert not force
            older = step < latest or (step == latest and not overwrite)
            assert older or step % running.interval
        elif outcome is StepAlreadyExistsError:
            assert step in self.there
            assert not overwrite
        elif outcome is StepPinnedError:
            assert overwrite or step in self.damaged
            assert step in self.pins.values()
        elif issubclass(outcome, LEASE_ERRORS):
            assert outcome is forbidden
        elif issubclass(outcome, FileExistsError):
            assert step in self.there
            assert not overwrite
        else:
            assert running.view.faults

    def check_collected(self, running, known, before, found, evidence, *, exact):
        """What is gone is what the policy lets go, by what the process knew; never more."""
        gone = before.keys() - found.keys()
        assert found.items() <= before.items()
        aside = {step for step in evidence if before.get(step) == evidence[step]}
        seen = [before[step] for step in sorted((known & before.keys()) - aside)]
        protected = {step: ["pinned"] for step in self.pins.values()}
        if self.held is not None:
            protected.setdefault(self.held[0], ["being read"])
        if seen:
            protected[seen[-1].step] = ["newest"]
        context = keep.PreservationContext(protected=protected)
        answers = running.policy.should_preserve(seen, context=context)
        surplus = {
            entry.step
            for entry, kept in zip(seen, answers, strict=True)
            if not kept and entry.step not in protected
        }
        stays = min((entry.step for entry in seen if entry.step not in surplus), default=0)
        old = {step for step in evidence if step < stays and before[step] == evidence[step]}
        assert gone <= surplus | old, f"{gone} is gone; {running.policy} lets {surplus} go"
        assert not seen or seen[-1].step in found
        assert gone >= surplus or not exact

    @precondition(lambda self: self.live and self.there)
    @rule(who=PROCESSES, rank=st.integers(0, 9))
    def explain(self, who, rank):
        """What `explain` says is what the next commit does, if it adds no step."""
        before = self.there
        who = self.pick(who)
        running = self.live[who]
        running.run.reload()
        told = [verdict for verdict in running.run.explain() if verdict.step < 90]
        assert [verdict.step for verdict in told] == sorted(self.there)
        assert self.look() == before
        if self.forbidden(who) or self.damaged:
            return
        newest = self.there[max(self.there)]
        again = dataclasses.replace(newest, version=next(self.versions))
        outcome = self.attempt(running, again, force=True, overwrite=True, background=False)
        found = self.look()
        if outcome is StepPinnedError:
            assert newest.step in self.pins.values()
            assert found == before
            self.settle(who)
            return
        assert outcome == "committed"
        assert found[newest.step].version == again.version
        assert found.keys() == {verdict.step for verdict in told if verdict.kept}
        assert all(running.run.explain())
        self.move_to_trash(who, before, found)
        self.there = found
        self.settle(who, wrote=True)

    # --- removals and pins -------------------------------------------------------------

    @precondition(lambda self: self.live)
    @rule(who=PROCESSES, back=st.integers(0, 3), fault=FAULTS)
    def delete(self, who, back, fault):
        """Removes a step by name."""
        who = self.pick(who)
        running, forbidden = self.live[who], self.forbidden(who)
        before = dict(self.there)
        step = max(0, max(self.there, default=0) - back)
        if fault:
            running.view.fail_at(*fault)
        refused = None
        try:
            running.run.delete(step)
        except (SimulatedCrash, *NOT_REMOVED, StorageError) as error:
            refused = type(error)
        found = self.look()
        without = {number: saved for number, saved in before.items() if number != step}
        if refused is None:
            assert forbidden is None
            assert step in before
            assert step not in self.pins.values()
            assert self.held is None or step != self.held[0]
            assert found == without
        elif forbidden is None and fault and refused not in NOT_REMOVED:
            assert found in (before, without)
        else:
            assert found == before
            assert fault or self.may_not_be_removed(step, refused, forbidden)
        self.move_to_trash(who, before, found)
        self.there = found
        self.settle(who, wrote=refused is None)
        if who in self.live:
            assert (step in {entry.step for entry in running.run.checkpoints}) <= (step in found)

    def may_not_be_removed(self, step, refused, forbidden):
        """Whether a removal that was refused had to be, and with that error."""
        return {
            StepPinnedError: step in self.pins.values(),
            StepBeingReadError: self.held is not None and step == self.held[0],
            StepNotFoundError: step not in self.there,
            forbidden: True,
        }.get(refused, False)

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

    # --- the trash -------------------------------------------------------------------

    @precondition(lambda self: self.live and self.trash)
    @rule(who=PROCESSES, back=st.integers(0, 3), fault=FAULTS)
    def restore(self, who, back, fault):
        """Brings a step back, of several of its number the one that went last."""
        who = self.pick(who)
        running, forbidden, before = self.live[who], self.forbidden(who), dict(self.there)
        wanted = self.trash[max(0, len(self.trash) - 1 - back)].step
        last = [saved for saved in self.trash if saved.step == wanted][-1]
        if fault:
            running.view.fail_at(*fault)
        refused = None
        try:
            running.run.restore_from_trash(wanted)
        except (SimulatedCrash, StepAlreadyExistsError, StorageError) as error:
            refused = type(error)
        found = self.look()
        if refused is None:
            assert forbidden is None
            assert wanted not in before
            assert found == {**before, wanted: last}
        elif not fault or forbidden:
            assert found == before
            assert wanted in before or refused is forbidden or fault
        assert found in (before, {**before, wanted: last})
        if found != before:
            self.trash.remove(last)
        self.there = found
        assert sorted(self.in_trash()) == sorted(saved.step for saved in self.trash)
        self.settle(who, wrote=refused is None)

    @precondition(lambda self: self.live and self.trash)
    @rule(who=PROCESSES, fault=FAULTS, days=st.sampled_from([0, 1]))
    def empty_trash(self, who, fault, days):
        """Gives up what is in the trash, if it is old enough: here nothing is a day old."""
        who = self.pick(who)
        running, forbidden = self.live[who], self.forbidden(who)
        if fault:
            running.view.fail_at(*fault)
        gone = refused = None
        try:
            gone = running.run.empty_trash(older_than=datetime.timedelta(days=days))
        except (SimulatedCrash, StorageError) as error:
            refused = type(error)
        assert fault or refused is forbidden
        assert self.look() == self.there
        left = self.in_trash()
        if forbidden or days:
            assert not gone
            assert left == [saved.step for saved in self.trash]
        elif not fault:
            assert sorted(gone) == sorted(saved.step for saved in self.trash)
            assert left == []
        kept = []
        for saved in self.trash:
            if saved.step in left:
                left.remove(saved.step)
                kept.append(saved)
        assert left == []
        self.trash = kept
        self.settle(who, wrote=gone is not None)
        if who in self.live and not self.trash and self.there:
            with pytest.raises(StepNotInTrashError if not self.forbidden(who) else StorageError):
                running.run.restore_from_trash(98)

    # --- readers ---------------------------------------------------------------------

    @precondition(lambda self: self.there)
    @rule(back=st.integers(0, 3))
    def read_on(self, back):
        """An evaluation holds a step, and lets the one before go."""
        self.let_go()
        step = self.listed()[-1 - back] if back < len(self.listed()) else None
        if step is not None:
            hold = self.open()[1].reading(step)
            hold.__enter__()
            self.held = (step, hold)

    @rule()
    def let_go(self):
        """It has read."""
        if self.held is not None:
            self.held[1].__exit__(None, None, None)
            self.held = None

    # --- damage ------------------------------------------------------------------------

    @precondition(lambda self: self.there)
    @rule(back=st.integers(0, 2))
    def damage(self, back):
        """A byte of a step changes."""
        step = sorted(self.there)[max(0, len(self.there) - 1 - back)]
        if step in self.damaged:
            return

        async def change():
            record = (await read_record(self.store, str(step))).record
            key = keys.join(str(step), record.data, "x/metadata")
            data = await self.store.get(key)
            await self.store.put(key, data.replace(b"version", b"veRsion"))
            return Damaged(record.attempt, self.there[step], key, data)

        self.damaged[step] = self.ask(change())
        self.changed[self.damaged[step].attempt] = self.damaged[step]

    @precondition(lambda self: self.live and self.there)
    @rule(who=PROCESSES)
    def load_what_is_good(self, who):
        """The newest step that is whole is loaded; newer ones are marked by who may write."""
        who = self.pick(who)
        running = self.live[who]
        running.run.reload()
        good = [step for step in self.there if step not in self.damaged]
        if not good:
            with pytest.raises(StorageError):
                running.run.load_checkpointables(fallback=True)
            return
        loaded = running.run.load_checkpointables(fallback=True)["x"]
        assert loaded == value(self.there[max(good)])
        assert running.run.last_load.step == max(good)
        passed = {step for step in self.damaged if step > max(good)}
        skipped = {told.step for told in running.run.last_load.skipped}
        assert {step for step in skipped if step < 90} == passed  # not copies cut short
        running.aside |= {step: self.damaged[step].attempt for step in passed}
        elsewhere = running.epoch is None and self.is_written_to_elsewhere(who)
        self.marked |= set() if elsewhere else passed
        assert [entry.step for entry in running.run.checkpoints] == self.listed(running)

    def is_written_to_elsewhere(self, who):
        _, lease = self.newest_lease()
        others = [other.view.pid for name, other in self.live.items() if name != who]
        return lease is not None and not lease.released and lease.by.pid in others

    @precondition(lambda self: self.damaged)
    @rule()
    def repair(self):
        """Somebody puts the right bytes back: what was said of the step is not true any more."""
        for was in self.damaged.values():
            self.ask(self.store.put(was.key, was.data))
        self.damaged, self.marked = {}, set()
        for running in self.live.values():
            running.run.reload()
            assert [entry.step for entry in running.run.checkpoints] == sorted(self.there)

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
        _, run, _ = self.open()
        assert [entry.step for entry in run.checkpoints] == self.listed()

    @invariant()
    def pinned_steps_and_strays_stay(self):
        assert self.stored_pins() == self.pins
        for key, data in self.strays.items():
            assert self.ask(self.store.get(key)) == data

    def teardown(self):
        try:
            for running in self.live.values():
                running.run.close()
                running.leases.settle()
                running.view.die()
            self.let_go()
            self.live = {}
            if sys.exc_info() == (None, None, None):  # nothing has failed yet
                self.check_nothing_is_left()
        finally:
            self.cleanup.close()

    def check_nothing_is_left(self):
        """The next process that saves, and one more sweep, leave steps and strays."""
        _, run, _ = self.open()
        last = Saved(max(self.there, default=0) + 1, next(self.versions), {"quality": 0}, 0)
        with run:
            assert run.save_checkpointables(
                last.step, {"x": JsonSave(value(last))}, metrics=last.metrics
            )
        found = self.look()
        assert found == {**self.there, last.step: found[last.step]}

        left = [key for key in self.ask(litter(self.store)) if key not in self.strays]
        said = (PINS_DIR, QUARANTINE_DIR, TRASH.prefix)
        left = [key for key in left if not any(keys.is_under(key, where) for where in said)]
        assert self.trash or left == []
        assert self.look() == found


def value(saved):
    return {"step": saved.step, "version": saved.version}


def behind_a_network(store):
    """Where requests are round trips, a run has hints of its committed steps."""
    store.hints = dataclasses.replace(store.hints, round_trips=True)
    return store


STORES = {  # and how many sequences are tried on each
    "pointer": (lambda: behind_a_network(TableBackend()), 6),
    "rename": (lambda: TableBackend(rename=True, exchange=True), 6),
    "decided": (lambda: behind_a_network(TableBackend(decided=True)), 4),
    "memory": (lambda: open_backend(f"memory://machine-{uuid.uuid4().hex}/run"), 2),
    "local": (lambda: open_backend(tempfile.mkdtemp(dir=SCRATCH[0])), 3),
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
