"""Errors that concern more than one process."""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from holdfast_metadata import HoldfastError

_PHASE = "_holdfast_phase"


@dataclass(frozen=True)
class FailureReport:
    """What a process tells the others about its failure.

    Attributes:
        process: Its index.
        phase: What it was doing.
        error: The class of the error.
        message: The error's message.
        builtins: The builtin classes that the error is one of.
        facts: The attributes of an error that all processes raise alike.
    """

    process: int
    phase: str
    error: str
    message: str
    builtins: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException, process: int, phase: str) -> FailureReport:
        """What to tell of an error."""
        names = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        facts = _facts(error) if _ALIKE.get(type(error).__name__) is type(error) else {}
        phase = getattr(error, _PHASE, phase)
        return cls(process, phase, type(error).__name__, said, tuple(names), facts)

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
        if self.error in _ALIKE:
            return _made_again(_ALIKE[self.error], self.message, self.facts)
        return _remote_error(self.builtins)(what, self)


@contextlib.contextmanager
def during(phase: str, leaf: str) -> Iterator[None]:
    """Adds to an error what was done and to which leaf; other processes are told of both."""
    try:
        yield
    except Exception as error:
        error.add_note(f"(leaf {leaf!r}, during {phase})")
        setattr(error, _PHASE, phase)
        raise


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

    def __init__(
        self,
        what: str,
        phase: str,
        processes: Sequence[int],
        deadline_s: float,
        elsewhere: Mapping[int, str] | None = None,
    ) -> None:
        names = ", ".join(map(str, processes[:20])) + (", ..." if len(processes) > 20 else "")
        which = "process" if len(processes) == 1 else "processes"
        super().__init__(
            f"{what}: {which} {names} did not come to {phase} and made no progress for "
            f"{deadline_s:g} s{_where(elsewhere or {})}"
        )
        self.processes = tuple(processes)
        self.phase = phase


def _where(elsewhere: Mapping[int, str]) -> str:
    """Where processes are that do not come, as far as they have said so."""
    places: dict[str, list[int]] = {}
    for process, what in sorted(elsewhere.items()):
        places.setdefault(what, []).append(process)
    return "".join(
        f"; process {', '.join(map(str, who[:20]))} waits in {what}"
        for what, who in list(places.items())[:5]
    )


class JobError(HoldfastError, ValueError):
    """Something is wrong with the job as a whole; every process raises it alike."""


class DisagreementError(JobError):
    """The processes do not ask for the same thing; nothing was written."""


class StorageNotSharedError(JobError):
    """The processes do not see the same storage under the same path; nothing was saved."""


_ALIKE: dict[str, type[HoldfastError]] = {}


def tell_alike(*kinds: type[HoldfastError]) -> None:
    """Makes errors that say something of the checkpoints, and not of one process.

    If a process raises one in what all do together, the others raise one of the same class,
    with the same message and attributes, and not a `RemoteProcessError`.
    """
    _ALIKE.update({kind.__name__: kind for kind in kinds})


tell_alike(DisagreementError, StorageNotSharedError)


def _facts(error: BaseException) -> dict[str, Any]:
    """The attributes of an error that can be sent; its notes are in the message."""
    return {
        name: value
        for name, value in vars(error).items()
        if not name.startswith("_") and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float)


def _made_again(kind: type[HoldfastError], message: str, facts: Mapping[str, Any]) -> HoldfastError:
    """An error with the message of another one: what made that message is not here."""
    error = kind.__new__(kind, message)
    error.args = (message,)
    vars(error).update(facts)
    return error


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
