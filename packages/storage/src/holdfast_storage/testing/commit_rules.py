"""What a commit strategy must show on its backend while nobody is stopped half-way."""
# ruff: noqa: D102 - the name of a test is the sentence that it shows

from __future__ import annotations

import asyncio

import pytest

from holdfast_metadata import COMMIT_FILE, CommitRecord, canonical_json
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import list_committed, open_committed, read_record, verify
from holdfast_storage.testing.faulty import Fault, FaultyBackend
from holdfast_storage.testing.history import History, files_of, strategy_for
from holdfast_storage.testing.tables import TableBackend


class CommitRules:
    """Writers that nobody stops. Subclass it and provide the fixture `backend`: an empty store.

    `CommitTests` has all of this, and stops a writer at each of its calls.
    """

    @pytest.fixture
    def history(self) -> History:
        """Nobody did anything yet."""
        return History("run/step_7")

    # --- one actor -----------------------------------------------------------------------

    async def test_nothing_is_visible_before_the_commit(self, backend: StorageBackend) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin("run/step_7")
        await strategy.area(txn).put("a", b"x")
        with pytest.raises(errors.CheckpointNotFoundError, match="never committed"):
            await open_committed(backend, "run/step_7")
        assert not (await list_committed(backend, "run")).committed

    async def test_a_commit_can_be_repeated(self, backend: StorageBackend) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin("run/step_7")
        area = strategy.area(txn)
        await area.put("a", b"x")
        entries = await strategy.seal(txn, area)
        first = await strategy.commit(txn, entries)
        assert (await strategy.commit(txn, entries)).attempt == first.attempt

    async def test_a_deleted_attempt_cannot_be_committed_again(
        self, backend: StorageBackend
    ) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin("run/step_7")
        area = strategy.area(txn)
        await area.put("a", b"x")
        entries = await strategy.seal(txn, area)
        await strategy.commit(txn, entries)
        await strategy.retire("run/step_7", expected=txn.attempt)
        with pytest.raises(errors.AttemptLostError):
            await strategy.commit(txn, entries)

    async def test_files_that_two_processes_list_are_committed_once(
        self, backend: StorageBackend
    ) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin("run/step_7")
        area = strategy.area(txn)
        await area.put("a", b"x")
        entries = await strategy.seal(txn, area)
        await strategy.commit(txn, [*entries, *entries])
        assert not (await verify(backend, "run/step_7")).problems

    async def test_a_save_does_not_replace_unasked(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "old")
        await history.save(backend, "new")
        assert history.refused == {"new": "CommitConflictError"}
        assert await history.committed(backend) == "old"

    async def test_an_overwrite_keeps_the_old_one_until_the_switch(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "old")
        strategy = await strategy_for(backend)
        txn = await strategy.begin(history.final)
        await strategy.area(txn).put("a", b"half")
        assert await history.committed(backend) == "old"
        await strategy.abort(txn)
        await history.overwrite(backend, "new")
        assert await history.judge(backend) == "new"
        assert await history.leftovers(backend) == []

    async def test_an_overwrite_of_what_begin_did_not_see_is_refused(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "old")
        strategy = await strategy_for(backend)
        txn = await strategy.begin(history.final)
        area = strategy.area(txn)
        await area.put("a", b"late")
        await history.overwrite(backend, "new")
        with pytest.raises(errors.CommitConflictError):
            await strategy.commit(txn, await strategy.seal(txn, area), replace=True)
        assert await history.committed(backend) == "new"

    async def test_retiring_another_attempt_than_expected_is_refused(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "old")
        with pytest.raises(errors.CommitConflictError):
            await (await strategy_for(backend)).retire(history.final, expected="0" * 32)
        assert await history.committed(backend) == "old"

    async def test_a_retired_name_is_free_again(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "old")
        await history.retire(backend, "retirer")
        assert await history.committed(backend) is None
        assert await history.leftovers(backend) == []
        await history.save(backend, "new")
        assert await history.judge(backend) == "new"

    async def test_a_sweep_spares_a_writer_that_may_be_alive(
        self, backend: StorageBackend, history: History
    ) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin(history.final)
        area = strategy.area(txn)
        await area.put("a", b"x")
        report = await strategy.sweep("run", older_than=3600.0)
        assert not report.removed
        assert [prefix for prefix, _ in report.spared] == [txn.staging]
        await strategy.commit(txn, await strategy.seal(txn, area))

    async def test_a_writer_that_was_swept_is_told_so(
        self, backend: StorageBackend, history: History
    ) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin(history.final)
        area = strategy.area(txn)
        await area.put("a", b"x")
        entries = await strategy.seal(txn, area)
        await history.sweep(backend, "sweeper")
        with pytest.raises(errors.AttemptLostError):
            await strategy.commit(txn, entries)
        assert await history.committed(backend) is None

    async def test_aborting_what_is_committed_leaves_it(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "A")
        await history.abort(backend, "another process")
        assert await history.committed(backend) == "A"

    # --- what is not ours ----------------------------------------------------------------

    @pytest.mark.parametrize("replace", [False, True])
    async def test_something_foreign_is_refused_and_left_alone(
        self, backend: StorageBackend, replace: bool
    ) -> None:
        await backend.put("run/step_7/notes.txt", b"mine")
        history = History("run/step_7")
        await (history.overwrite if replace else history.save)(backend, "new")
        assert history.refused == {"new": "DestinationOccupiedError"}
        await history.sweep(backend, "sweeper")
        assert await backend.get("run/step_7/notes.txt") == b"mine"

    async def test_files_that_arrive_during_a_save_are_left_alone(
        self, backend: StorageBackend
    ) -> None:
        strategy = await strategy_for(backend)
        txn = await strategy.begin("run/step_7")
        area = strategy.area(txn)
        await area.put("a", b"x")
        entries = await strategy.seal(txn, area)
        await backend.put("run/step_7/plots/notes.txt", b"mine")
        with pytest.raises(errors.DestinationOccupiedError):
            await strategy.commit(txn, entries, replace=True)
        assert await backend.get("run/step_7/plots/notes.txt") == b"mine"

    async def test_an_orbax_checkpoint_goes_only_when_replacing(
        self, backend: StorageBackend, history: History
    ) -> None:
        for name in ("_CHECKPOINT_METADATA", "_METADATA", "d/x", "commit_success.txt"):
            await backend.put(f"{history.final}/{name}", b"orbax")
        await history.save(backend, "refused")
        assert history.refused == {"refused": "CommitConflictError"}
        assert await backend.get(f"{history.final}/d/x") == b"orbax"
        await history.overwrite(backend, "new")
        assert await history.committed(backend) == "new"
        with pytest.raises(errors.ObjectNotFoundError):
            await backend.get(f"{history.final}/d/x")

    async def test_what_orbax_may_still_be_writing_is_untouchable(
        self, backend: StorageBackend, history: History
    ) -> None:
        if not backend.orbax_commits_by_file:
            return  # here Orbax renames: what has its marks is finished
        await backend.put(f"{history.final}/_CHECKPOINT_METADATA", b"orbax")
        await history.overwrite(backend, "refused")
        assert history.refused == {"refused": "DestinationOccupiedError"}
        assert await backend.get(f"{history.final}/_CHECKPOINT_METADATA") == b"orbax"

    async def test_a_newer_record_is_untouchable(
        self, backend: StorageBackend, history: History
    ) -> None:
        newer = canonical_json({"format_version": 99, "state": "committed"})
        await backend.put(f"{history.final}/{COMMIT_FILE}", newer)
        await history.overwrite(backend, "new")
        await history.sweep(backend, "sweeper")
        assert history.refused == {"new": "RecordUnreadableError"}
        assert await backend.get(f"{history.final}/{COMMIT_FILE}") == newer
        assert (await list_committed(backend, "run")).unreadable

    async def test_the_trash_is_not_swept(self, backend: StorageBackend, history: History) -> None:
        await history.save(backend, "old")
        key = f"{history.final}/{COMMIT_FILE}"
        record = CommitRecord.from_bytes(await backend.get(key)).to_bytes()
        await backend.put(key, record.replace(b'"committed"', b'"trashed"'))
        await history.sweep(backend, "sweeper")
        await backend.put(key, record)
        assert await history.committed(backend) == "old"

    async def test_a_tree_copied_object_by_object_stays_valid(
        self, backend: StorageBackend, history: History
    ) -> None:
        await history.save(backend, "first")
        await history.overwrite(backend, "second")
        copy = TableBackend()
        seen = set()
        async for info in backend.walk(history.final):
            await copy.put(info.key, await backend.get(info.key))
            try:
                seen.add(await history.committed(copy))
            except errors.IncompleteCheckpointError:
                seen.add("incomplete")
        assert seen <= {None, "incomplete", "second"}
        assert await history.committed(copy) == "second"
        await history.retire(copy, "retirer")
        await history.sweep(copy, "sweeper")
        assert await history.leftovers(copy) == []

    # --- races ---------------------------------------------------------------------------

    async def test_of_many_racing_writers_exactly_one_wins(
        self, backend: StorageBackend, history: History
    ) -> None:
        names = [f"w{number}" for number in range(6)]
        await asyncio.gather(*(history.save(backend, name) for name in names))
        assert len(history.acknowledged) == 1
        assert set(history.refused.values()) == {"CommitConflictError"}
        assert await history.judge(backend) in history.acknowledged
        assert await history.leftovers(backend) == []

    async def test_cancelling_a_commit_waits_for_its_outcome(
        self, backend: StorageBackend, history: History
    ) -> None:
        view = FaultyBackend(backend)
        strategy = await strategy_for(view)
        txn = await strategy.begin(history.final)
        area = strategy.area(txn)
        for name, data in files_of("A").items():
            await area.put(name, data)
        entries = await strategy.seal(txn, area)
        view.faults[len(view.calls) + 1] = Fault.PAUSE
        commit = asyncio.ensure_future(strategy.commit(txn, entries))
        await view.reached.wait()
        commit.cancel()
        view.resume.set()
        await asyncio.wait([commit])
        assert (await read_record(backend, history.final)).attempt == txn.attempt
