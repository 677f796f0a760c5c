"""What the trash, and the removal of what Orbax wrote, must show on every commit strategy."""
# ruff: noqa: D102 - the name of a test is the sentence that it shows

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable

import pytest

from holdfast_storage import errors, keys
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import CommitStrategy, Trash, TrashEntry, occupant, read_record
from holdfast_storage.commit.layout import decision
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash
from holdfast_storage.testing.history import History, strategy_for, until_paused

ORBAX = ("_CHECKPOINT_METADATA", "_METADATA", "d/x", "d/y", "commit_success.txt")
FAULTS = [Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE]
ACTS = ["trash", "restore", "empty"]
OTHERS = ["trash", "restore", "empty", "save", "overwrite", "retire", "sweep"]


class _Patient(Trash):
    """A trash whose strategy does not wait long."""

    async def _strategy(self) -> CommitStrategy:
        return await strategy_for(self._backend)


class _Run:
    """One run folder with one final, and what became of it."""

    def __init__(self, number: int) -> None:
        self.folder = f"run-{number}"
        self.history = History(f"{self.folder}/step_7")
        self.final = self.history.final

    def trash(self, backend: StorageBackend) -> Trash:
        return _Patient(backend, f"{self.folder}/bin")

    async def act(self, what: str, backend: StorageBackend, label: str) -> bool:
        """Whether the actor was told that it was done."""
        if what in ("save", "overwrite", "retire", "sweep"):
            await self.history.act(what, backend, label)
            if what == "sweep":
                await self._told(self.trash(backend).sweep(older_than=0.0))
            return True
        acts: dict[str, Callable[[StorageBackend], Awaitable[None]]] = {
            "trash": self._trash,
            "restore": self._restore,
            "empty": self._empty,
            "orbax": self._remove_orbax,
        }
        return await self._told(acts[what](backend))

    async def run_actor(self, what: str, backend: StorageBackend) -> None:
        """Runs an actor of whom nobody asks what it was told."""
        await self.act(what, backend, "A")

    async def _told(self, work: Awaitable[object]) -> bool:
        try:
            await work
        except (errors.StorageError, SimulatedCrash):
            return False
        return True

    async def _trash(self, backend: StorageBackend) -> None:
        found = await occupant(backend, self.final)
        await self.trash(backend).put(self.final, expected=found.stored.attempt)

    async def _restore(self, backend: StorageBackend) -> None:
        await self.trash(backend).restore(await self._entry(backend))

    async def _empty(self, backend: StorageBackend) -> None:
        await (await self.trash(backend).empty(await self._entry(backend)))()

    async def _remove_orbax(self, backend: StorageBackend) -> None:
        await (await (await strategy_for(backend)).uncommit_orbax(self.final))()

    async def _entry(self, backend: StorageBackend) -> TrashEntry:
        entries = await self.trash(backend).entries()
        if not entries:
            raise errors.CheckpointNotFoundError("the trash is empty")
        return entries[0]

    async def settle(self, backend: StorageBackend) -> None:
        """Sweeps, taking everybody for dead, until nothing changes."""
        for _ in range(3):
            await self.history.sweep(backend, "sweeper")
            await self.trash(backend).sweep(older_than=0.0)

    async def in_trash(self, backend: StorageBackend) -> list[str]:
        """Whose checkpoints the trash holds, each of them whole: they are restored to see."""
        found = []
        for entry in await self.trash(backend).entries():
            await self.history.retire(backend, "make room")
            await self.trash(backend).restore(entry)
            label = await self.history.committed(backend)
            assert label is not None
            found.append(label)
            await self.trash(backend).put(self.final, expected=entry.attempt)
        return sorted(found)

    async def leftovers(self, backend: StorageBackend) -> list[str]:
        spared = ("_COMMIT.json", "unrelated", "commit_success.txt")
        left = [info.key async for info in backend.walk(self.folder)]
        record = (await read_record(backend, self.final)).record
        data = keys.join(self.final, record.data) if record and record.committed else None
        return [
            key
            for key in left
            if keys.leaf(key) not in spared
            and key != decision(self.final)
            and not (data and keys.is_under(key, data))
        ]


class TrashTests:
    """Subclass it and provide the fixture `backend`: an empty store.

    Attributes:
        tick_s: How long the store's clock takes to go on, in seconds.
    """

    tick_s = 0.02
    _runs = itertools.count()

    async def _fresh(self, backend: StorageBackend, what: str = "trash") -> _Run:
        """A run whose step is committed, or in the trash if `what` takes it from there."""
        run = _Run(next(self._runs))
        await backend.put(f"{run.folder}/unrelated", b"")
        if what == "orbax":
            for name in ORBAX:
                await backend.put(f"{run.final}/{name}", b"orbax")
            return run
        await run.history.save(backend, "old")
        if what in ("restore", "empty"):
            assert await run.act("trash", backend, "before")
        return run

    # --- one actor -----------------------------------------------------------------------

    async def test_what_is_in_the_trash_is_not_committed_and_comes_back_as_it_was(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend)
        before = (await read_record(backend, run.final)).record
        assert await run.act("trash", backend, "A")
        assert await run.history.committed(backend) is None
        (entry,) = await run.trash(backend).entries()
        assert (entry.final, entry.attempt) == (run.final, before.attempt if before else None)
        await run.settle(backend)
        await run.trash(backend).restore(entry)
        assert await run.history.committed(backend) == "old"
        assert (await read_record(backend, run.final)).record == before
        assert await run.trash(backend).entries() == []
        assert await run.leftovers(backend) == []

    async def test_a_step_saved_anew_can_go_there_too_and_each_comes_back(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend)
        await run.act("trash", backend, "A")
        await run.history.save(backend, "new")
        await run.history.overwrite(backend, "newer")
        await run.settle(backend)
        with pytest.raises(errors.CommitConflictError, match="a checkpoint is here"):
            await run.trash(backend).restore((await run.trash(backend).entries())[0])
        assert await run.history.committed(backend) == "newer"
        await run.act("trash", backend, "A")
        await run.settle(backend)
        assert await run.in_trash(backend) == ["newer", "old"]
        while await run.trash(backend).entries():
            assert await run.act("empty", backend, "A")
        assert await run.leftovers(backend) == []
        await run.history.save(backend, "last")
        assert await run.history.committed(backend) == "last"

    async def test_a_writer_that_slept_since_before_cannot_take_it_out_or_delete_it(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend)
        txn = run.history.begun["old"]
        await run.act("trash", backend, "A")
        strategy = await strategy_for(backend)
        with pytest.raises(errors.AttemptLostError):
            await strategy.commit(txn, ())
        await strategy.abort(txn)
        assert await run.in_trash(backend) == ["old"]

    async def test_what_lies_there_without_a_ticket_is_not_touched(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend)
        await backend.put(f"{run.folder}/bin/step_7/notes.txt", b"mine")
        await run.act("trash", backend, "A")
        assert await run.in_trash(backend) == ["old"]
        await run.act("empty", backend, "A")
        await run.settle(backend)
        assert await backend.get(f"{run.folder}/bin/step_7/notes.txt") == b"mine"

    async def test_a_damaged_one_is_not_brought_back(self, backend: StorageBackend) -> None:
        run = await self._fresh(backend, "restore")
        (entry,) = await run.trash(backend).entries()
        await backend.delete(f"{entry.prefix}/a")
        with pytest.raises(errors.DamagedCheckpointError):
            await run.trash(backend).restore(entry)
        assert await run.history.committed(backend) is None
        assert await run.act("empty", backend, "A")
        assert await run.leftovers(backend) == []

    # --- what Orbax wrote ----------------------------------------------------------------

    async def test_what_orbax_wrote_is_removed_and_its_name_is_free(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend, "orbax")
        remove = await (await strategy_for(backend)).uncommit_orbax(run.final)
        assert (await occupant(backend, run.final)).kind == "absent"
        await run.history.save(backend, "ours")
        await remove()
        await remove()
        assert await run.history.committed(backend) == "ours"
        assert await run.leftovers(backend) == []

    async def test_what_orbax_saves_during_a_removal_stays(self, backend: StorageBackend) -> None:
        run = await self._fresh(backend, "orbax")
        remove = await (await strategy_for(backend)).uncommit_orbax(run.final)
        await asyncio.sleep(self.tick_s)
        for name in ORBAX:
            await backend.put(f"{run.final}/{name}", b"later")
        await remove()
        await run.settle(backend)
        assert (await occupant(backend, run.final)).kind == "orbax"
        for name in ORBAX:
            assert await backend.get(f"{run.final}/{name}") == b"later"

    async def test_what_is_none_of_orbax_is_refused_and_left_alone(
        self, backend: StorageBackend
    ) -> None:
        strategy = await strategy_for(backend)
        run = await self._fresh(backend)
        with pytest.raises(errors.CommitConflictError):
            await strategy.uncommit_orbax(run.final)
        await backend.put("foreign/notes.txt", b"mine")
        with pytest.raises(errors.CheckpointNotFoundError, match=r"notes\.txt"):
            await strategy.uncommit_orbax("foreign")
        assert await backend.get("foreign/notes.txt") == b"mine"

    async def test_orbax_goes_to_the_trash_where_folders_move_and_is_refused_elsewhere(
        self, backend: StorageBackend
    ) -> None:
        run = await self._fresh(backend, "orbax")
        moves = (await strategy_for(backend)).name == "rename"
        assert await run.act("trash", backend, "A") == moves
        if not moves:
            assert (await occupant(backend, run.final)).kind == "orbax"
            assert await run.trash(backend).tickets() == []
            return
        assert (await occupant(backend, run.final)).kind == "absent"
        assert await run.act("restore", backend, "A")
        assert (await occupant(backend, run.final)).kind == "orbax"
        await run.act("trash", backend, "A")
        assert await run.act("empty", backend, "A")
        assert await run.leftovers(backend) == []


class TrashFaultTests(TrashTests):
    """The same, and a crash, a lost reply, a refusal and another actor at every point."""

    @pytest.mark.parametrize("fault", FAULTS)
    async def test_a_removal_of_orbax_cut_short_is_finished_by_the_next_sweep(
        self, backend: StorageBackend, fault: Fault
    ) -> None:
        for number in itertools.count(1):
            run = await self._fresh(backend, "orbax")
            view = FaultyBackend(backend, {number: fault})
            done = await run.act("orbax", view, "A")
            if len(view.calls) < number:
                return
            gone = (await occupant(backend, run.final)).kind == "absent"
            assert gone or not done
            await run.settle(backend)
            if gone:
                assert await run.leftovers(backend) == [], view.calls
            elif (await occupant(backend, run.final)).kind == "orbax":
                there = [info.key async for info in backend.walk(run.final)]
                assert {f"{run.final}/{name}" for name in ORBAX} <= set(there), view.calls
            else:
                assert await run.leftovers(backend) == [], view.calls

    @pytest.mark.parametrize("fault", FAULTS)
    @pytest.mark.parametrize("what", ACTS)
    async def test_a_fault_at_any_call_loses_nothing_and_leaves_nothing(
        self, backend: StorageBackend, what: str, fault: Fault
    ) -> None:
        for number in itertools.count(1):
            run = await self._fresh(backend, what)
            view = FaultyBackend(backend, {number: fault})
            done = await run.act(what, view, "A")
            if len(view.calls) < number:
                return
            seen = await run.history.committed(backend)
            await run.settle(backend)
            there = await run.history.committed(backend)
            assert seen in (None, there), view.calls
            kept = await run.in_trash(backend)
            assert len(kept) + (there is not None) <= 1, view.calls
            expected: dict[str, tuple[str | None, list[str]]] = {
                "trash": (None, ["old"]),
                "restore": ("old", []),
                "empty": (None, []),
            }
            if done or (there, kept) == expected[what]:
                assert (there, kept) == expected[what], view.calls
            else:
                before = ("old", []) if what == "trash" else (None, ["old"])
                assert (there, kept) == before, view.calls
            if kept:
                assert await run.act("empty", backend, "later")
            await run.history.overwrite(backend, "last")
            await run.settle(backend)
            assert await run.history.committed(backend) == "last"
            assert await run.leftovers(backend) == [], view.calls

    @pytest.mark.parametrize("other", OTHERS)
    @pytest.mark.parametrize("what", ACTS)
    async def test_another_actor_at_any_pause_loses_nothing(
        self, backend: StorageBackend, what: str, other: str
    ) -> None:
        for number in itertools.count(1):
            run = await self._fresh(backend, what)
            view = FaultyBackend(backend, {number: Fault.PAUSE})
            actor = asyncio.ensure_future(run.run_actor(what, view))
            paused = await until_paused(actor, view)
            second = False
            if paused:
                second = await run.act(other, backend, "B")
                view.resume.set()
            await actor
            await run.settle(backend)
            there = await run.history.committed(backend)
            kept = await run.in_trash(backend)
            gone = {"empty", "retire", "overwrite"} & {what, other if second else ""}
            if not gone:
                assert "old" in [there, *kept], (view.calls, other, there, kept)
            if "B" in run.history.acknowledged and other in ("save", "overwrite"):
                assert "B" in [there, *kept], (view.calls, other, there, kept)
            if not paused:
                return

    @pytest.mark.parametrize("others", [("trash",), ("trash", "empty"), ("trash", "restore")])
    async def test_a_reader_paused_anywhere_sees_all_of_it_or_that_it_is_gone(
        self, backend: StorageBackend, others: tuple[str, ...]
    ) -> None:
        for number in itertools.count(1):
            run = await self._fresh(backend)
            view = FaultyBackend(backend, {number: Fault.PAUSE}, reads=True)
            reader = asyncio.ensure_future(run.history.committed(view))
            reached = asyncio.ensure_future(view.reached.wait())
            await asyncio.wait([reader, reached], return_when=asyncio.FIRST_COMPLETED)
            reached.cancel()
            if view.reached.is_set():
                for other in others:
                    assert await run.act(other, backend, "B")
                view.resume.set()
            assert await reader in ("old", None)
            if len(view.calls) < number:
                return
