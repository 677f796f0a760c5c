"""A run as one thing: its folder, its steps, and what is done about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from holdfast_checkpointer.options import Context
from holdfast_manager.engine.deletion import Deletion, Trash
from holdfast_manager.engine.fallback import Loading
from holdfast_manager.engine.holds import Holds
from holdfast_manager.engine.job import Job
from holdfast_manager.engine.joint_fallback import JointLoading
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.engine.reaper import Reaper
from holdfast_manager.engine.retention import Retention
from holdfast_manager.engine.saver import Saver
from holdfast_manager.engine.trash import RunTrash
from holdfast_manager.engine.view import SharedView
from holdfast_manager.engine.writing_lease import WritingLease
from holdfast_manager.policies.preservation_policies import PreservationPolicy
from holdfast_manager.policies.save_decision_policies import SaveDecisionPolicy
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.step_names import NameFormat
from holdfast_storage import StorageBackend

T = TypeVar("T")


@dataclass(frozen=True)
class RunSettings:
    """What a run is opened with, whichever class opens it; checked by that class.

    Attributes:
        when: When to save.
        what: What to keep.
        names: How the folders of steps are called; None is by the step alone.
        root_metadata: Stored once for the run, at the first save.
        takeover: Take the run from whoever writes to it, at the first save or removal.
        trash: Where removed steps go; None deletes them.
        deletion: How fast data is deleted.
        marks: Whether damaged steps that a load has found are marked.
    """

    when: SaveDecisionPolicy
    what: PreservationPolicy
    names: NameFormat | None = None
    root_metadata: Mapping[str, Any] | None = None
    takeover: bool = False
    trash: Trash | None = None
    deletion: Deletion = field(default_factory=Deletion)
    marks: bool = True


class Run:
    """The parts of an opened run, made for each other. Opening writes nothing.

    Args:
        backend: The storage, whose root is the run's folder.
        context: Options.
        settings: What else it is opened with.

    Attributes:
        directory: The run's folder.
        known: The committed steps as this process knows them.
        holds: Steps that stay whatever a policy says, and why.
        quarantine: Steps that are there and not good.
        loading: Loads steps.
        lease: Who may write.
        reaper: Deletes data in the background.
        trash: Removed steps that may come back.
        retention: What is done after a commit.
        saver: Saves steps, one at a time.
        job: The processes that use the run together.
    """

    def __init__(
        self,
        backend: StorageBackend,
        context: Context,
        settings: RunSettings,
        job: Callable[[SharedView], Job] | None = None,
    ) -> None:
        self.directory = RunDirectory(backend, settings.names)
        self.known = KnownSteps(self.directory)
        view = SharedView(self.known, self.directory)
        self.job = job(view) if job else Job.of(context, self.directory.label, view)
        self.known.follows = not self.job.decides
        self.holds = Holds(self.directory)
        self.lease = WritingLease(backend, self.known.refresh, takeover=settings.takeover)
        self.quarantine = Quarantine(
            self.directory, self.known, self.lease.written_elsewhere if settings.marks else _yes
        )
        parts = self.known, self.directory, self.quarantine
        self.loading = Loading(*parts) if self.job.alone else JointLoading(*parts, self.job)
        self.reaper = Reaper(settings.deletion)
        self.trash = RunTrash(self.directory, self.known, self.lease, self.reaper, settings.trash)
        self.retention = Retention(
            self.directory,
            self.known,
            self.holds,
            self.quarantine,
            self.lease,
            settings.what,
            self.reaper,
            self.trash,
        )
        self.saver = Saver(
            self.directory,
            self.known,
            self.retention,
            self.quarantine,
            self.lease,
            self.job,
            settings.when,
            context,
            root_metadata=settings.root_metadata,
        )
        self.reload()

    def reload(self) -> None:
        """Lists the storage again, to see what other jobs committed or removed."""
        self.do("reload()", self.known.reload)

    def sweep(self) -> None:
        """Looks in the background for what dead writers left, once."""
        if self.job.decides:
            self.retention.sweep()

    def do(self, call: str, work: Callable[[], T]) -> T:
        """Does something once for all processes of the job; gives each the result, as JSON.

        Raises:
            Exception: As `Job.turn`.
        """
        return self.job.turn(call, lambda _: work())


async def _yes() -> bool:
    return True
