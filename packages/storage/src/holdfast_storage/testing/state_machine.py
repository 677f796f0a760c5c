"""Any sequence of begin, commit, retire, sweep and fault keeps what was acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from holdfast_metadata import ManifestEntry
from holdfast_storage import errors
from holdfast_storage.backend import StorageBackend
from holdfast_storage.commit import DecidedRenameCommit, list_committed
from holdfast_storage.commit.strategy import CommitStrategy, Transaction
from holdfast_storage.testing.faulty import Fault, FaultyBackend, SimulatedCrash
from holdfast_storage.testing.history import History, files_of, strategy_for

T = TypeVar("T")
_FAULTS = st.one_of(
    st.none(),
    st.tuples(st.integers(1, 10), st.sampled_from([Fault.CRASH, Fault.LOSE_REPLY, Fault.REFUSE])),
)
_WRITERS = st.sampled_from(["one", "two"])


class CommitMachine(RuleBasedStateMachine):
    """Two writers that overlap, a reaper, a sweeper, and a store that fails.

    Subclass it and provide `open_store`.
    """

    open_store: Callable[[], StorageBackend]

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.new_event_loop()
        self.store = type(self).open_store()
        self.history = History("run/step_7")
        self.there: str | None = None
        # Where a decision and its publication are two steps: decided by a writer that died.
        self._decided: set[str] = set()
        self._open: dict[
            str, tuple[str, CommitStrategy, Transaction, tuple[ManifestEntry, ...]]
        ] = {}
        self._count = 0

    def teardown(self) -> None:
        """Closes the loop."""
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(coroutine)

    def _view(self, fault: tuple[int, Fault] | None) -> FaultyBackend:
        return FaultyBackend(self.store, dict([fault] if fault else []))

    def _committed(self) -> str | None:
        """What is visible; a later actor may have published what a dead one decided."""
        found = self._run(self.history.committed(self.store))
        if found is not None and found in self._decided:
            self.there = found
            self._decided.clear()
        return found

    @rule(writer=_WRITERS)
    def begin(self, writer: str) -> None:
        """Starts an attempt; one that the writer had open is left behind, as by a crash."""
        self._count += 1
        self._open[writer] = self._run(self._stage(f"{writer}{self._count}"))

    async def _stage(
        self, label: str
    ) -> tuple[str, CommitStrategy, Transaction, tuple[ManifestEntry, ...]]:
        strategy = await strategy_for(self.store)
        txn = await strategy.begin(self.history.final)
        area = strategy.area(txn)
        for name, data in files_of(label).items():
            await area.put(name, data)
        return label, strategy, txn, await strategy.seal(txn, area)

    @precondition(lambda self: self._open)
    @rule(writer=_WRITERS, replace=st.booleans(), fault=_FAULTS)
    def commit(self, writer: str, replace: bool, fault: tuple[int, Fault] | None) -> None:
        """Commits what the writer has open, once; the machine believes what it is told."""
        if writer not in self._open:
            return
        label, _, txn, entries = self._open.pop(writer)
        view = self._view(fault)
        try:
            self._run(self._commit(view, txn, entries, replace))
        except (errors.CommitUnknownError, SimulatedCrash):
            found = self._committed()
            assert found in (label, self.there)
            self.there = found
            if isinstance(self._run(self.store.commit_strategy()), DecidedRenameCommit):
                self._decided.add(label)
        except errors.StorageError:
            assert self._committed() == self.there
        else:
            self.there = label

    async def _commit(
        self,
        view: FaultyBackend,
        txn: Transaction,
        entries: tuple[ManifestEntry, ...],
        replace: bool,
    ) -> None:
        strategy = await strategy_for(view)
        try:
            await strategy.commit(txn, entries, replace=replace)
        except errors.CommitUnknownError:
            raise
        except errors.StorageError:
            await (await strategy_for(self.store)).abort(txn)
            raise

    @rule(fault=_FAULTS)
    def retire(self, fault: tuple[int, Fault] | None) -> None:
        """Removes what is there; cut short, it is there or it is not."""
        view = self._view(fault)
        self._run(self.history.act("retire", view, "reaper"))
        found = self._committed()
        assert found in (None, self.there)
        assert found is None or fault is not None
        self.there = found

    @rule(fault=_FAULTS)
    def sweep(self, fault: tuple[int, Fault] | None) -> None:
        """Takes every writer for dead; never touches what is committed."""
        self._run(self.history.act("sweep", self._view(fault), "sweeper"))

    @invariant()
    def what_is_listed_is_what_was_acknowledged(self) -> None:
        """One checkpoint, whole, of the writer that was told so; or none."""
        assert self._committed() == self.there
        listed = self._run(list_committed(self.store, "run")).committed
        assert [entry.name for entry in listed] == (["step_7"] if self.there else [])
