"""Loading a run in all processes of a job: they load the same step, or fall back together."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Coroutine, Mapping
from typing import Any

from holdfast_checkpointer.multihost.errors import FailureReport
from holdfast_checkpointer.multihost.operation import Operation
from holdfast_manager.engine.fallback import Loading, LoadReport, Not, Read, Search
from holdfast_manager.engine.job import Job, beating
from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.engine.quarantine import Quarantine
from holdfast_manager.engine.view import decoded, decoded_aside, encoded, encoded_aside
from holdfast_manager.quarantine import Aside
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import CheckpointMetadata

_LOADED, _GONE, _DAMAGED = b"loaded", b"gone", b"damaged"


class JointLoading(Loading):
    """Each process loads its part; after each try all say how it went.

    A step is passed over if one process has found it damaged, and what cannot be passed over
    is raised by all. The primary chooses the steps and marks them.

    Args:
        known: The steps of the run.
        run: The run.
        quarantine: Where damaged steps go.
        job: The processes.
    """

    def __init__(
        self, known: KnownSteps, run: RunDirectory, quarantine: Quarantine, job: Job
    ) -> None:
        super().__init__(known, run, quarantine)
        self._job = job

    def resolve(self, number: int | None) -> CheckpointMetadata:
        """As `Loading.resolve`; the latest is that of the primary."""
        if number is not None:
            return super().resolve(number)
        said = self._job.turn("load()", lambda _: encoded(self._known.resolve(None)))
        return decoded(said, self._run)

    def _begin_fallback(
        self, number: int | None, read: Read, deadline: float | None
    ) -> Coroutine[Any, Any, tuple[Any, LoadReport]]:
        call = f"load({'' if number is None else f'{number}, '}fallback=True)"
        self._job.turn(call, lambda _: self._require_something(number))
        return self._load_together(self._job.begin(call), Search(number), read, deadline)

    async def _load_together(
        self, operation: Operation, search: Search, read: Read, deadline: float | None
    ) -> tuple[Any, LoadReport]:
        async with operation, beating(operation):
            for number in itertools.count():
                entry = await self._chosen(operation, number, search)
                if entry is None:
                    await operation.conclude(b"" if operation.is_primary else None)
                    raise self._given_up(search)
                operation.enter(f"the load of step {entry.step}")
                found = await operation.until_failure(self._try(entry, read, deadline, search))
                verdict = await self._agreed(operation, number, entry, found, search)
                if verdict == _LOADED:
                    return found, await self._told_of(operation, entry, search)
        raise AssertionError

    async def _chosen(
        self, operation: Operation, number: int, search: Search
    ) -> CheckpointMetadata | None:
        """The step that all try next; None if there is none."""
        said = None
        if operation.is_primary:
            entry = await self._next_to_try(search)
            skipped = [[encoded(one.entry), encoded_aside(one)] for one in search.skipped]
            said = json.dumps(
                {"entry": None if entry is None else encoded(entry), "skipped": skipped}
            ).encode()
        heard = json.loads(await operation.broadcast(f"the choice of a step {number}", said))
        if operation.is_primary:
            return entry
        search.skipped = [decoded_aside(a, decoded(e, self._run)) for e, a in heard["skipped"]]
        return None if heard["entry"] is None else decoded(heard["entry"], self._run)

    async def _agreed(
        self,
        operation: Operation,
        number: int,
        entry: CheckpointMetadata,
        found: Any,
        search: Search,
    ) -> bytes:
        """How the try went for all of them."""
        said: dict[str, Any] = {"how": _LOADED.decode()}
        if found is Not.THERE:
            said = {"how": _GONE.decode()}
        elif found is Not.DAMAGED:
            aside, error = search.found[-1]
            report = FailureReport.of(error, operation.me, f"the load of step {entry.step}")
            said = {
                "how": _DAMAGED.decode(),
                "aside": encoded_aside(aside),
                "error": dataclasses.asdict(report),
            }

        def judge(ballots: Mapping[int, bytes]) -> bytes:
            told = {process: json.loads(data) for process, data in sorted(ballots.items())}
            damaged = [one for one in told.values() if one["how"] == _DAMAGED.decode()]
            if damaged:
                if found is not Not.DAMAGED:
                    search.skipped.append(_aside(damaged[0], entry))
                    search.found.append((search.skipped[-1], _error(damaged[0], entry)))
                return _DAMAGED
            gone = any(one["how"] == _GONE.decode() for one in told.values())
            return _GONE if gone else _LOADED

        phase = f"the outcome of the load of step {entry.step} ({number})"
        verdict = await operation.vote(phase, json.dumps(said).encode(), judge)
        if verdict == _GONE and operation.is_primary:
            await self._known.refresh()
        return verdict

    async def _told_of(
        self, operation: Operation, entry: CheckpointMetadata, search: Search
    ) -> LoadReport:
        """The primary marks what was found; all know of it after that."""
        report = await self._report(entry, search) if operation.is_primary else None
        await operation.conclude(b"" if operation.is_primary else None)
        if report is not None:
            return report
        passed = [one for one in search.skipped if one.entry.step >= entry.step]
        for one in passed:
            if one.entry.step > entry.step:
                self._known.set_aside(one)
        return LoadReport(entry.step, entry.path, tuple(one.told for one in passed))


def _aside(said: Mapping[str, Any], entry: CheckpointMetadata) -> Aside:
    return decoded_aside(said["aside"], entry)


def _error(said: Mapping[str, Any], entry: CheckpointMetadata) -> Exception:
    report = FailureReport.from_bytes(json.dumps(said["error"]).encode())
    return report.as_error(f"the load of step {entry.step}")
