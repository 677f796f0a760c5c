"""Rules: removals, pins and the trash."""

import datetime

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from packages.manager.tests.run_machine.model import FAULTS, NOT_REMOVED, PINS, PROCESSES
from packages.manager.tests.run_machine.run_model import RunModel

from holdfast_manager.errors import (
    PinExistsError,
    PinNotFoundError,
    StepAlreadyExistsError,
    StepBeingReadError,
    StepNotFoundError,
    StepNotInTrashError,
    StepPinnedError,
)
from holdfast_storage import StorageError
from holdfast_storage.testing.faulty import SimulatedCrash


class Removals(RunModel):
    """What takes a step away or holds it, and what brings it back."""

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
