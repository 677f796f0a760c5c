"""Real processes that save until they are killed, at some instant or at a numbered operation.

One parent imports everything once and forks a worker per request; it uses neither
TensorStore nor JAX's devices itself, which a fork would not survive. A worker appends a
line to its log after each acknowledged commit.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import itertools
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any


def state(number: int) -> dict[str, object]:
    """A state that says which one it is, in every element."""
    import jax
    import numpy as np

    return {
        "number": number,
        "numpy": np.full(60_000, number, np.int32),
        "jax": jax.device_put(np.full((40, 40), number, np.int32)),  # nothing to compile
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


def run_one_overwrite(place: str, log: int, kill_at: int) -> None:
    """Replaces state 1 by state 2; dies before an operation of it."""
    import holdfast as hf

    new = state(2)
    kill_before_operation(str(Path(place).parent), kill_at)
    hf.save(place, new, overwrite=True)
    os.write(log, b"2\n")


def run_one_forced_save(place: str, log: int, kill_at: int) -> None:
    """The same with a v0 checkpointer, in the background."""
    import holdfast as hf

    new = state(2)
    with hf.StandardCheckpointer() as checkpointer:
        kill_before_operation(str(Path(place).parent), kill_at)
        checkpointer.save(place, new, force=True)
        checkpointer.wait_until_finished()
        os.write(log, b"2\n")


def run_one_step(place: str, log: int, kill_at: int) -> None:
    """Opens a run of steps 0 and 1, saves 2, which removes 0; dies before an operation of it."""
    import holdfast as hf

    new = state(2)
    keep = hf.training.preservation_policies.LatestN(2)
    kill_before_operation(place, kill_at)
    with hf.training.Checkpointer(place, preservation_policy=keep) as checkpointer:
        checkpointer.save(2, new)
        os.write(log, b"2\n")


def run_one_of_each(place: str, log: int, kill_at: int) -> None:
    """Opens a run of steps 0, 1 and 2, and changes it in each other way; dies in one of them."""
    import holdfast as hf

    new = state(20)
    kill_before_operation(place, kill_at)
    with hf.training.Checkpointer(place, trash=hf.training.Trash()) as checkpointer:
        checkpointer.save(2, new, overwrite=True)
        os.write(log, b"overwritten\n")
        checkpointer.pin(0, "paper")
        os.write(log, b"pinned\n")
        checkpointer.delete(1)
        os.write(log, b"deleted\n")
        checkpointer.restore_from_trash(1)
        os.write(log, b"restored\n")
        checkpointer.unpin("paper")
        os.write(log, b"unpinned\n")


def run_one_slow_save(place: str, log: int, megabytes: int) -> None:
    """Saves something large, which leaves time to stop the process in the middle."""
    import numpy as np

    import holdfast as hf

    large = {**state(2), "large": np.ones((megabytes, 1 << 20), np.uint8)}
    os.write(log, b"ready\n")
    hf.save(place, large)
    os.write(log, b"2\n")


def run_training(place: str, log: int, steps: int) -> None:
    """Saves steps as fast as it can and keeps only the newest."""
    import holdfast as hf

    keep = hf.training.preservation_policies.LatestN(1)
    with hf.training.Checkpointer(place, preservation_policy=keep) as checkpointer:
        for step in range(steps):
            checkpointer.save(step, state(step))
            os.write(log, f"{step}\n".encode())


def run_reader(place: str, log: int, ttl_ms: int) -> None:
    """Holds the latest step until it is told that it has lost it; then loads it."""
    import holdfast as hf
    from holdfast_manager.engine.holds import Holds
    from holdfast_manager.engine.readers import Readers
    from holdfast_manager.run_directory import RunDirectory
    from holdfast_storage import get_loop, open_backend

    run = RunDirectory(open_backend(place))
    readers = Readers(run, Holds(run).removals, ttl_s=ttl_ms / 1000, interval_s=0.02)
    (entry,) = get_loop().run(run.list_steps())
    reading = get_loop().run(readers.take(entry))
    os.write(log, b"ready\n")
    while not reading.lost:
        time.sleep(0.01)
    reading.close()
    try:
        hf.load(f"{place}/{entry.name}")
    except hf.errors.CheckpointNotFoundError:
        os.write(log, b"lost\n")


def run_holder(place: str, log: int, step: int) -> None:
    """Saves a step, waits until it may go on, saves the next, and ends without closing."""
    import numpy as np

    import holdfast as hf

    run = hf.training.Checkpointer(place)
    run.save(step, {"number": np.full(3, step)})
    os.write(log, b"held\n")
    while not Path(place).with_name("go").exists():
        time.sleep(0.005)
    try:
        run.save(step + 1, {"number": np.full(3, step + 1)})
    except hf.errors.LeaseLostError:
        os.write(log, b"lost\n")
    leave()


def run_parent(place: str, log: int, step: int) -> None:
    """Saves a step, forks a child that tries the next, and saves that itself then."""
    import numpy as np

    import holdfast as hf

    run = hf.training.Checkpointer(place)
    run.save(step, {"number": np.full(3, step)})
    child = os.fork()
    if not child:
        try:
            run.save(step + 1, {"number": np.full(3, -1)})
        except hf.errors.LeaseHeldError as error:
            os.write(log, b"refused\n" if error.pid == os.getppid() else b"whom?\n")
        leave()
    while Path(f"/proc/{child}").exists():
        time.sleep(0.005)
    run.save(step + 1, {"number": np.full(3, step + 1)})
    os.write(log, b"saved\n")
    leave()


def leave() -> None:
    """What the interpreter does when a program ends, which a fork of a worker does not."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    os._exit(0)


def kill_before_operation(folder: str, kill_at: int) -> None:
    """From now on counts what Python does to files below `folder`; dies before one of them.

    TensorStore's own writes are not seen. They fall between two operations that are, and
    the kills at random instants hit them.
    """
    seen = itertools.count(1)

    def watch(event: str, args: tuple[Any, ...]) -> None:
        if event != "open" and not event.startswith("os."):
            return
        if not any(isinstance(arg, str) and folder in arg for arg in args):
            return
        if next(seen) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)


CLIENTS = ("holdfast_s3", "s3fs", "holdfast_gcs", "gcsfs.core", "google.auth.compute_engine")
MODES = {
    "steps": run_steps,
    "overwrites": run_overwrites,
    "one-overwrite": run_one_overwrite,
    "one-forced-save": run_one_forced_save,
    "one-step": run_one_step,
    "one-of-each": run_one_of_each,
    "one-slow-save": run_one_slow_save,
    "training": run_training,
    "reader": run_reader,
    "holder": run_holder,
    "parent": run_parent,
}


def main() -> None:
    """Forks a worker for each line `[mode, place, log, numbers, variables]`; prints its pid."""
    for module in ("holdfast.training", "holdfast_local", *CLIENTS):
        importlib.import_module(module)  # here, once
    gc.freeze()  # else each worker's first collection goes through all of that, and copies it
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    warnings.simplefilter("ignore")  # that a fork in a process with threads is risky
    for line in sys.stdin:
        mode, place, log, numbers, variables = json.loads(line)
        pid = os.fork()
        if pid:
            print(pid, flush=True)
            continue
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        os.environ.update(variables)
        faulthandler.dump_traceback_later(90)  # who hangs says where, to stderr
        try:
            MODES[mode](place, descriptor, *numbers)
        except BaseException as error:
            os.write(descriptor, f"failed: {error!r}\n".encode())
            os._exit(1)
        os.write(descriptor, b"ended\n")
        os._exit(0)


if __name__ == "__main__":
    main()
