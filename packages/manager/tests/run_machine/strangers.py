"""Rules: what others do to a run."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule
from packages.manager.tests.run_machine.model import PROCESSES, Damaged, value
from packages.manager.tests.run_machine.run_model import RunModel

from holdfast_storage import StorageError, keys
from holdfast_storage.commit import read_record


class Strangers(RunModel):
    """Readers, damage, repairs, and what is left there that is no step."""

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
