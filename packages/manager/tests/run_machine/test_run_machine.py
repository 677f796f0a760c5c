"""Any sequence of saves, faults, deaths, removals and strays keeps what was reported."""

import sys
import tempfile
import uuid

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule, run_state_machine_as_test
from packages.manager.tests.run_machine.model import (
    POLICIES,
    PROCESSES,
    TRASH,
    Running,
    Saved,
    value,
)
from packages.manager.tests.run_machine.removals import Removals
from packages.manager.tests.run_machine.saves import Saves
from packages.manager.tests.run_machine.strangers import Strangers
from packages.manager.tests.world import STORES

from holdfast_checkpointer.args import JsonSave
from holdfast_manager.policies.save_decision_policies import (
    ContinuousCheckpointingPolicy,
    FixedIntervalPolicy,
)
from holdfast_metadata import PINS_DIR, QUARANTINE_DIR
from holdfast_storage import DamagedCheckpointError, keys, open_backend
from holdfast_storage.testing.history import litter


class RunMachine(Saves, Removals, Strangers):
    """Two processes with one run."""

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


SEQUENCES = {"pointer": 6, "rename": 6, "decided": 4, "memory": 2, "local": 3}  # tried on each
BRIEF = settings(
    stateful_step_count=20,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],  # with Phase.shrink a failure takes minutes, and becomes shorter
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_any_sequence_keeps_what_was_reported(kind, tmp_path):
    stores = {
        **STORES,
        "memory": lambda: open_backend(f"memory://machine-{uuid.uuid4().hex}/run"),
        "local": lambda: open_backend(tempfile.mkdtemp(dir=tmp_path)),
    }

    class Machine(RunMachine):
        open_store = staticmethod(stores[kind])

    run_state_machine_as_test(Machine, settings=settings(BRIEF, max_examples=SEQUENCES[kind]))
