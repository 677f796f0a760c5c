"""A real training process that saves as fast as it can, until it is killed.

One parent imports everything once and forks a worker per request; it uses neither
TensorStore nor JAX's devices itself, which a fork would not survive. A worker appends a
line to its log after each acknowledged commit.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings


def state(number: int) -> dict[str, object]:
    """A state that says which one it is, in every element."""
    import jax.numpy as jnp
    import numpy as np

    return {
        "number": number,
        "numpy": np.full(60_000, number, np.int32),
        "jax": jnp.full((40, 40), number, jnp.int32),
        "layers": [np.full(3, number) for _ in range(20)],
    }


def warm_up() -> None:
    """Pays for first uses, so that what is killed is a save and not a start."""
    import holdfast as hf

    hf.save("memory://warm/up", state(0))
    hf.load("memory://warm/up")


def run_steps(place: str, log: int) -> None:
    """Resumes after the latest step and saves every step in the background."""
    import holdfast as hf

    keep = hf.training.preservation_policies.LatestN(3)
    with hf.training.Checkpointer(place, preservation_policy=keep) as checkpointer:
        latest = checkpointer.latest
        step = 0 if latest is None else latest.step + 1
        if latest is not None:
            assert checkpointer.load()["number"] == latest.step
        warm_up()
        os.write(log, b"ready\n")
        while True:
            response = checkpointer.save_async(step, state(step))
            if response:
                response.result()
                os.write(log, f"{step}\n".encode())
            step += 1


def run_overwrites(place: str, log: int) -> None:
    """Overwrites one checkpoint with the next number, again and again."""
    import holdfast as hf

    number = hf.load(place)["number"] + 1 if hf.is_checkpoint(place) else 0
    warm_up()
    os.write(log, b"ready\n")
    while True:
        hf.save(place, state(number), overwrite=True)
        os.write(log, f"{number}\n".encode())
        number += 1


def main() -> None:
    """Forks a worker for each line `mode place log` of standard input; prints its pid."""
    import holdfast as hf
    import holdfast_local

    for module in (hf.save, hf.training, holdfast_local):
        assert module  # imported here, once
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # that a fork in a process with threads is risky
    for line in sys.stdin:
        mode, place, log = line.split()
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            {"steps": run_steps, "overwrites": run_overwrites}[mode](place, descriptor)
        finally:
            os.write(descriptor, b"failed\n")
            os._exit(1)


if __name__ == "__main__":
    main()
