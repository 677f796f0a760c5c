import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from holdfast_storage.testing.state_machine import CommitMachine
from holdfast_storage.testing.tables import TableBackend

BRIEF = settings(max_examples=60, stateful_step_count=25, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "options",
    [{}, {"rename": True, "exchange": True}, {"rename": True}, {"decided": True}],
    ids=["pointer", "rename", "rename without exchange", "decided"],
)
def test_any_sequence_keeps_what_was_acknowledged(options):
    class Machine(CommitMachine):
        @staticmethod
        def open_store():
            return TableBackend(**options)

    run_state_machine_as_test(Machine, settings=BRIEF)
