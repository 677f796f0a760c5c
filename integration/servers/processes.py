"""A server in a process of its own, which ends with the test run whatever happens."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_START_S = 60.0
# Asks Linux to kill the server with its parent, then becomes it. Not `preexec_fn`, which
# forks: processes in which JAX has started threads must not.
_BECOME = """
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_END_WITH_PARENT = (sys.executable, "-c", _BECOME)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def clean_environment(**more: str) -> dict[str, str]:
    """The environment without anything that configures cloud clients."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AWS_", "GOOGLE_", "HOLDFAST_", "STORAGE_", "FSSPEC_"))
    }
    return kept | {"AWS_EC2_METADATA_DISABLED": "true"} | more


@contextlib.contextmanager
def server(
    command: Sequence[str],
    answers: Callable[[], bool],
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a server until the block is left.

    Args:
        command: What to run; it listens on the loopback only.
        answers: Whether it is ready; asked until it is, for a minute at most.
        env: Variables on top of a clean environment.

    Raises:
        RuntimeError: It ended or never answered; with what it printed.
    """
    with tempfile.TemporaryDirectory() as folder:
        # What the server leaves behind (ministack: a pid file) goes away with the folder.
        variables = {"TMPDIR": folder} | dict(env or {})
        log = Path(folder) / "output"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*_END_WITH_PARENT, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean_environment(**variables),
                cwd=folder,
            )
        try:
            _wait(process, answers, log)
            yield process
        finally:
            stop(process)


def _wait(process: subprocess.Popen[bytes], answers: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(Exception):
            if answers():
                return
        time.sleep(0.05)
    raise RuntimeError(
        f"{process.args} does not answer:\n{log.read_text(errors='replace')[-4000:]}"
    )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a server: asked to, then killed."""
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(10)


def listens(port: int) -> bool:
    """Whether somebody accepts connections on a loopback port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0
