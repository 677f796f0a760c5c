"""Errors that concern more than one process."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast_metadata import HoldfastError


@dataclass(frozen=True)
class FailureReport:
    """What a process tells the others about its failure.

    Attributes:
        process: Its index.
        phase: What it was doing.
        error: The class of the error.
        message: The error's message.
        disagreement: Whether the error is that the processes do not agree.
    """

    process: int
    phase: str
    error: str
    message: str
    disagreement: bool = False

    def to_bytes(self) -> bytes:
        """Encodes as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FailureReport:
        """The inverse of `to_bytes`."""
        return cls(**json.loads(data))


class CoordinationError(HoldfastError, RuntimeError):
    """The service between the processes did not do what was asked of it."""


class RemoteProcessError(HoldfastError, RuntimeError):
    """Another process of the job failed, so what all of them do together failed.

    Attributes:
        process: The index of that process.
        phase: What it was doing.
        error: The class of its error.
    """

    def __init__(self, what: str, report: FailureReport) -> None:
        super().__init__(
            f"{what} failed because process {report.process} did, during {report.phase}: "
            f"{report.error}: {report.message}"
        )
        self.process = report.process
        self.phase = report.phase
        self.error = report.error


class ProcessStalledError(HoldfastError, TimeoutError):
    """Processes did not arrive, or made no progress, for as long as the deadline allows.

    Attributes:
        processes: Their indices.
        phase: What they were waited for.
    """

    def __init__(self, what: str, phase: str, processes: Sequence[int], deadline_s: float) -> None:
        names = ", ".join(map(str, processes[:20])) + (", ..." if len(processes) > 20 else "")
        which = "process" if len(processes) == 1 else "processes"
        super().__init__(
            f"{what}: {which} {names} did not come to {phase} and made no progress for "
            f"{deadline_s:g} s"
        )
        self.processes = tuple(processes)
        self.phase = phase


class DisagreementError(HoldfastError, ValueError):
    """The processes do not ask for the same thing; nothing was written."""
