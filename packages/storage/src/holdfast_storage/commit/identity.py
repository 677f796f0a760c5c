"""Who is writing: enough to prove, on the same host, that a process is gone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast_metadata import AttemptMark

DEFAULT_TTL_S = 3600.0


def new_mark(
    attempt: str, kind: str, *, ttl_s: float = DEFAULT_TTL_S, extra: Mapping[str, Any] | None = None
) -> AttemptMark:
    """The mark of an attempt that this process begins."""
    return AttemptMark(
        attempt=attempt,
        kind=kind,
        host=socket.gethostname(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=os.getpid(),
        process_start=_process_start(os.getpid()),
        ttl_s=ttl_s,
        created_ns=time.time_ns(),
        extra=extra or {},
    )


def is_gone(mark: AttemptMark) -> bool:
    """Whether the writer is provably dead; False also means "cannot tell".

    Proof needs the same boot of the same host and the same pid namespace, and there no
    process of that pid and start time.
    """
    return _is_of_this_host(mark) and not _is_that_process(mark)


def is_here(mark: AttemptMark) -> bool:
    """Whether the writer provably lives, on this host; False also means "cannot tell"."""
    return _is_of_this_host(mark) and _is_that_process(mark)


def is_this_process(mark: AttemptMark) -> bool:
    """Whether this very process made the mark, perhaps before an `exec`."""
    return mark.pid == os.getpid() and is_here(mark)


def in_a_name(mark: AttemptMark) -> str:
    """A mark as a part of a name, where there is no room for a document."""
    return f"{_machine(mark)}.{mark.pid}.{mark.process_start}"


def from_a_name(text: str, attempt: str, kind: str) -> AttemptMark:
    """The inverse of `in_a_name`, on the same host; of another host, or of no mark, nothing
    can be told.
    """
    machine, pid, start, *_ = *text.split("."), "", "", ""
    here = new_mark(attempt, kind)
    known = machine == _machine(here) and pid.isdecimal()
    return dataclasses.replace(
        here,
        boot_id=here.boot_id if known else "",
        pid=int(pid) if known else 0,
        process_start=start,
        created_ns=0,
    )


def _machine(mark: AttemptMark) -> str:
    said = "/".join((mark.host, mark.boot_id, mark.pid_namespace))
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def _is_of_this_host(mark: AttemptMark) -> bool:
    if not mark.boot_id or mark.boot_id != _boot_id():
        return False
    if not mark.pid_namespace or mark.pid_namespace != _pid_namespace():
        return False
    # Sandboxes are known to show one boot id on several machines.
    return mark.host == socket.gethostname()


def _is_that_process(mark: AttemptMark) -> bool:
    return _exists(mark.pid) and _process_start(mark.pid) in ("", mark.process_start)


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _exists(pid: int) -> bool:
    """Whether the pid is in use. Asks the kernel: /proc hides others' with `hidepid`."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # it is there and not ours, or cannot be asked
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Ended and not yet waited for; a leader whose threads still run is not."""
    fields = _stat_fields(pid)
    if not fields or fields[0] not in "ZX":
        return False
    try:
        return len(os.listdir(f"/proc/{pid}/task")) <= 1
    except OSError:
        return False


def _process_start(pid: int) -> str:
    """Start time in clock ticks after boot; "" if it cannot be read."""
    fields = _stat_fields(pid)
    return fields[19] if len(fields) >= 20 else ""


def _stat_fields(pid: int) -> list[str]:
    # The name may hold spaces and parentheses: count fields after the last one.
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
