"""What must be in the run, and how to look whether it is."""

import contextlib
import itertools

from hypothesis.stateful import RuleBasedStateMachine
from packages.manager.tests.run_machine.model import Leases, Saved
from packages.manager.tests.world import open_run

from holdfast_metadata import PINS_DIR, Pin, parse_json
from holdfast_storage import (
    DamagedCheckpointError,
    LeaseHeldError,
    LeaseLostError,
    StorageError,
    get_loop,
)
from holdfast_storage.commit import list_committed, reading
from holdfast_storage.lease.epochs import list_epochs, read_epoch
from holdfast_storage.testing.faulty import SimulatedCrash
from holdfast_storage.testing.processes import Processes


class RunModel(RuleBasedStateMachine):
    """What must be there, how to look, and the processes.

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
        run = open_run(
            view, leases, preservation_policy=policy, save_decision_policy=when, **options
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

    def evidence(self, running):
        """Damaged steps that no policy of that process counts, from before its write."""
        aside = set(self.there) - set(self.listed(running))
        return {step: self.there[step] for step in aside}
