"""What the machine knows of a run, and what it draws."""

import dataclasses
import datetime
from dataclasses import dataclass

from hypothesis import strategies as st

from holdfast_manager import training
from holdfast_manager.errors import StepBeingReadError, StepNotFoundError, StepPinnedError
from holdfast_manager.policies import preservation_policies as keep
from holdfast_storage import LeaseHeldError, LeaseLostError
from holdfast_storage.lease import ProcessLeases
from holdfast_storage.testing.faulty import Fault


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


def value(saved):
    return {"step": saved.step, "version": saved.version}
