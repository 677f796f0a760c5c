"""Workers that can be killed: forked in milliseconds by a process that imported everything."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from integration.servers.processes import clean_environment

NO_AWS_FILES = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), "/dev/null")


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
        deadline = time.monotonic() + 120  # only a hang takes so long; it says where to stderr
        while Path(f"/proc/{self.pid}").exists():
            assert time.monotonic() < deadline, f"the worker still runs: {self.said()}"
            time.sleep(0.001)


class Zygote:
    """The process that forks workers; ends with the `with` block."""

    def __enter__(self):
        worker = Path(__file__).with_name("worker.py")
        self._process = subprocess.Popen(
            [sys.executable, str(worker)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=clean_environment(JAX_PLATFORMS="cpu", **NO_AWS_FILES),
        )
        return self

    def __exit__(self, *error):
        self._process.stdin.close()
        assert self._process.wait(timeout=60) == 0
        self._process.stdout.close()

    def start(self, mode, place, log, *numbers, env=()):
        """Starts `worker.MODES[mode]`, with more variables in its environment."""
        started = log.stat().st_size if log.exists() else 0
        order = [mode, str(place), str(log), numbers, dict(env)]
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return Worker(int(self._process.stdout.readline()), log, started)
