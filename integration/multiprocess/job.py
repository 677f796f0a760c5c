"""Starts the processes of one JAX job, and a process of such a job.

A job runs a function of `integration.multiprocess` in every process; what it returns, or the
error it raises, comes back as JSON.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.servers.processes import free_port

DEVICES = 2


@dataclass
class Job:
    """The processes of a job that runs.

    Attributes:
        processes: In order.
    """

    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def results(self, timeout_s: float = 120.0) -> list[Any]:
        """What each process returned; an error comes as `{"error": …, "message": …}`.

        Raises:
            AssertionError: A process ended without a word, or not well; its output is shown.
        """
        return [_result(index, process, timeout_s) for index, process in enumerate(self.processes)]

    def end(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def _result(index: int, process: subprocess.Popen[str], timeout_s: float) -> Any:
    out, err = process.communicate(timeout=timeout_s)
    said = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if not said or process.returncode:
        raise AssertionError(f"process {index} ended with {process.returncode}:\n{out}\n{err}")
    return json.loads(said[-1].removeprefix("RESULT "))


def word_of(process: subprocess.Popen[str]) -> Any:
    """What a process returned, which then waits for another that is dead."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("RESULT "):
            return json.loads(line.removeprefix("RESULT "))
    raise AssertionError("it ended without a word")


def start(
    count: int,
    part: str,
    *arguments: Any,
    devices: int = DEVICES,
    before: Sequence[Sequence[str]] = (),
) -> Job:
    """Starts a job of `count` processes, each with a few CPU devices of its own.

    Args:
        count: How many.
        part: The function that each runs: of `parts`, of another module here, as
            `module.function`, or of one elsewhere in `integration`, by its full name.
        *arguments: Its arguments.
        devices: CPU devices of each process.
        before: For each process words to put before its command.
    """
    port = free_port()
    job = Job()
    for index in range(count):
        command = [sys.executable, "-m", "integration.multiprocess.job"]
        command += [str(index), str(count), str(port), str(devices), part, json.dumps(arguments)]
        command = [*(before[index] if before else ()), *command]
        job.processes.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=Path(__file__).parents[2],
                env={**os.environ, "JAX_PLATFORMS": "cpu"},
            )
        )
    return job


def main() -> None:
    """One process of a job."""
    index, count, port, devices, part, arguments = sys.argv[1:]
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    import jax

    if int(count) > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{port}", int(count), int(index), initialization_timeout=60
        )
    module, _, name = part.rpartition(".")
    if not module.startswith("integration."):
        module = f"integration.multiprocess.{module or 'parts'}"
    function = getattr(importlib.import_module(module), name)
    try:
        result = function(*json.loads(arguments))
    except Exception as error:
        traceback.print_exc()
        result = {"error": type(error).__name__, "message": str(error)}
    print("RESULT " + json.dumps(result), flush=True)
    if int(count) > 1:
        jax.distributed.shutdown()


if __name__ == "__main__":
    main()
