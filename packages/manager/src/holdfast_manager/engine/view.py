"""What the primary of a job knows of a run, as it is told to the other processes."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

from holdfast_manager.engine.known import KnownSteps
from holdfast_manager.quarantine import Aside, QuarantinedStep
from holdfast_manager.quarantine.looking import StepIdentity
from holdfast_manager.run_directory import RunDirectory
from holdfast_manager.steps import UNREAD, CheckpointMetadata


class SharedView:
    """Tells what has changed, not the whole: a run may have thousands of steps.

    Args:
        known: What this process knows; on the primary the truth.
        run: The run.
    """

    def __init__(self, known: KnownSteps, run: RunDirectory) -> None:
        self._known = known
        self._run = run
        self._told: Mapping[int, Any] = {}
        self._clock = 0

    def news(self) -> Any:
        """On the primary: what has changed since this was asked before, as JSON."""
        now = {entry.step: encoded(entry) for entry in self._known.all()}
        for aside in self._known.all_aside():
            now[aside.entry.step] = {**encoded(aside.entry), "aside": encoded_aside(aside)}
        before, self._told = self._told, now
        # The others take in by themselves what was saved, and it may be gone again by now.
        saved, self._clock = self._known.committed_since(self._clock)
        return {
            "gone": [step for step in {*before, *saved} if step not in now],
            "there": [said for step, said in now.items() if before.get(step) != said],
        }

    def take(self, news: Any) -> None:
        """On the others: the same."""
        for step in news["gone"]:
            self._known.forget(step)
        mine = {entry.step: entry for entry in self._known.all()}
        for said in news["there"]:
            entry = decoded(said, self._run)
            if "aside" in said:
                self._known.adopt(decoded_aside(said["aside"], entry))
            elif not _learn(mine.get(entry.step), said):
                self._known.adopt(entry)


def _learn(mine: CheckpointMetadata | None, said: Mapping[str, Any]) -> bool:
    """Keeps an entry, and what was read for it, if it is of the same commit."""
    time = None if mine is None else mine.known_commit_ns
    if mine is None or encoded(mine) != {**said, "committed_ns": time}:
        return False
    if time is None:
        mine.confirm(UNREAD if said["committed_ns"] is None else said["committed_ns"])
    return time in (None, said["committed_ns"])


def encoded(entry: CheckpointMetadata) -> dict[str, Any]:
    """A step as JSON."""
    return {
        "step": entry.step,
        "name": entry.name,
        "committed_ns": entry.known_commit_ns,
        "ours": entry.ours,
        "unmarked": entry.unmarked,
    }


def decoded(said: Mapping[str, Any], run: RunDirectory) -> CheckpointMetadata:
    """The inverse of `encoded`."""
    time = said["committed_ns"]
    return run.describe(
        said["step"],
        UNREAD if time is None else time,
        said["name"],
        ours=said["ours"],
        unmarked=said["unmarked"],
    )


def encoded_aside(aside: Aside) -> dict[str, Any]:
    """What is said of a step that is not good, as JSON."""
    told = dataclasses.asdict(aside.told)
    told["found"] = None if aside.told.found is None else aside.told.found.isoformat()
    return {
        "told": told,
        "identity": dataclasses.asdict(aside.identity),
        "marked": aside.marked,
    }


def decoded_aside(said: Mapping[str, Any], entry: CheckpointMetadata) -> Aside:
    """The inverse of `encoded_aside`."""
    found = said["told"]["found"]
    time = None if found is None else datetime.datetime.fromisoformat(found)
    told = QuarantinedStep(**{**said["told"], "path": entry.path, "found": time})
    return Aside(entry, told, StepIdentity(**said["identity"]), marked=said["marked"])
