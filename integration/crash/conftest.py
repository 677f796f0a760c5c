"""Workers that are forked from one process, which has imported everything, and can be killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from holdfast_storage import get_loop, open_backend
from holdfast_storage.commit import RenameCommit


class Worker:
    """A process that saves, and the log it keeps."""

    def __init__(self, pid, log, started):
        self.pid = pid
        self._log = log
        self._started = started

    def said(self):
        """What this worker has written so far, word by word."""
        return (
            self._log.read_bytes()[self._started :].decode().split() if self._log.exists() else []
        )

    def wait_for(self, word):
        deadline = time.monotonic() + 60
        while word not in self.said():
            assert time.monotonic() < deadline, f"the worker did not say {word!r}: {self.said()}"
            time.sleep(0.002)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.join()

    def join(self):
        """Waits until nothing of the process is left: threads outlive their leader a little."""
        deadline = time.monotonic() + 60
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < deadline, f"the worker still runs: {self.said()}"
            time.sleep(0.001)


class Zygote:
    """The process that forks workers."""

    def __init__(self, process):
        self._process = process

    def start(self, mode, place, log, *number):
        """Starts `worker.MODES[mode]`."""
        started = log.stat().st_size if log.exists() else 0
        print(mode, place, log, *number, file=self._process.stdin, flush=True)
        return Worker(int(self._process.stdout.readline()), log, started)


@pytest.fixture(scope="session")
def zygote():
    worker = Path(__file__).with_name("worker.py")
    process = subprocess.Popen(
        [sys.executable, str(worker)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield Zygote(process)
    process.stdin.close()
    assert process.wait(timeout=60) == 0
    process.stdout.close()


@pytest.fixture(scope="session")
def assert_whole():
    """Every bit of a loaded state is that of its number."""

    def check(found, number):
        assert found["number"] == number
        assert (found["numpy"] == np.full(60_000, number)).all()
        assert (np.asarray(found["jax"]) == number).all()
        assert all((layer == number).all() for layer in found["layers"])

    return check


@pytest.fixture(scope="session")
def sweep():
    """Removes what dead writers left in a folder; by default replaced data may stay."""

    def run(folder, grace_s=600.0):
        return get_loop().run(RenameCommit(open_backend(folder), grace_s=grace_s).sweep(""))

    return run


@pytest.fixture(scope="session")
def left_in():
    """What is in a folder, besides the temporary file of a put that was killed half-way:
    nobody can know whose it is, so it goes when it is an hour old."""

    def names(folder):
        return sorted(name for name in os.listdir(folder) if not name.startswith(".put-"))

    return names
