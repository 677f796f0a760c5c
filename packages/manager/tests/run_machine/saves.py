"""Rules: what a training loop does."""

import dataclasses

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from packages.manager.tests.run_machine.model import (
    FAULTS,
    LEASE_ERRORS,
    PROCESSES,
    STEP_BYTES,
    Saved,
    value,
)
from packages.manager.tests.run_machine.run_model import RunModel

from holdfast_checkpointer.args import JsonSave
from holdfast_manager.errors import StepAlreadyExistsError, StepPinnedError
from holdfast_manager.policies import preservation_policies as keep
from holdfast_storage import CommitUnknownError, StorageError
from holdfast_storage.testing.faulty import SimulatedCrash


class Saves(RunModel):
    """Saves that meet faults, and what each process's policy collects after them."""

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
