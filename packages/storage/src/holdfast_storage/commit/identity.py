"""Who is writing: enough to prove, on the same host, that a process is gone."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from holdfast_metadata import AttemptMark

DEFAULT_TTL_S = 3600.0


def new_mark(attempt: str, kind: str, *, ttl_s: float = DEFAULT_TTL_S) -> AttemptMark:
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
    )


def is_gone(mark: AttemptMark) -> bool:
    """Whether the writer is provably dead; False also means "cannot tell".

    Proof needs the same boot of the same host and the same pid namespace, and there no
    process of that pid and start time.
    """
    if not mark.boot_id or mark.boot_id != _boot_id():
        return False
    if not mark.pid_namespace or mark.pid_namespace != _pid_namespace():
        return False
    return _process_start(mark.pid) != mark.process_start


def _boot_id() -> str:
    return _read("/proc/sys/kernel/random/boot_id").strip()


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _process_start(pid: int) -> str:
    """Start time in clock ticks after boot; "" if there is no such process."""
    stat = _read(f"/proc/{pid}/stat")
    # The name may hold spaces and parentheses: count fields after the last one.
    fields = stat.rpartition(")")[2].split()
    if len(fields) < 20 or fields[0] in "ZX":  # a zombie writes no more
        return ""
    return fields[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
