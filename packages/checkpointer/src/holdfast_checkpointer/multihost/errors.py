"""Errors that concern more than one process."""

from __future__ import annotations

import builtins
import dataclasses
import functools
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
        builtins: The builtin classes that the error is one of.
    """

    process: int
    phase: str
    error: str
    message: str
    builtins: tuple[str, ...] = ()

    @classmethod
    def of(cls, error: BaseException, process: int, phase: str) -> FailureReport:
        """What to tell of an error."""
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        return cls(process, phase, type(error).__name__, said, tuple(names))

    def to_bytes(self) -> bytes:
        """Encodes as JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> FailureReport:
        """The inverse of `to_bytes`."""
        said = json.loads(data)
        return cls(**{**said, "builtins": tuple(said["builtins"])})

    def as_error(self, what: str) -> Exception:
        """The error to raise in a process that is told."""
        if self.error in _JOB_ERRORS:
            return _JOB_ERRORS[self.error](self.message)
        return _remote_error(self.builtins)(what, self)


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


class JobError(HoldfastError, ValueError):
    """Something is wrong with the job as a whole; every process raises it alike."""


class DisagreementError(JobError):
    """The processes do not ask for the same thing; nothing was written."""


class StorageNotSharedError(JobError):
    """The processes do not see the same storage under the same path; nothing was saved."""


_JOB_ERRORS: dict[str, type[JobError]] = {
    kind.__name__: kind for kind in (DisagreementError, StorageNotSharedError)
}


@functools.cache
def _remote_error(names: tuple[str, ...]) -> type[RemoteProcessError]:
    """`RemoteProcessError` that is caught as the other process's error would be.

    So `except FileExistsError` works in every process, not in one of them only.
    """
    for name in names:
        kind = getattr(builtins, name)
        if kind in RemoteProcessError.__mro__ or not issubclass(kind, Exception):
            continue
        try:
            return type("RemoteProcessError", (RemoteProcessError, kind), {})
        except TypeError:  # two classes that cannot be one
            continue
    return RemoteProcessError
