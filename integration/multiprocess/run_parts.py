"""What the processes of a job do with one run; each is named in `job.start`."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from integration.multiprocess.parts import broken, global_array, mesh_of, outcome


class OwnMind:
    """A policy that every process would answer for itself: by its clock, and by chance."""

    def should_save(self, step: Any, previous: Any, *, context: Any) -> bool:
        """Whether its dice say so."""
        return random.random() < 0.8


class Never:
    """A policy that declines."""

    def should_save(self, step: Any, previous: Any, *, context: Any) -> bool:
        """No."""
        return False


def tree(step: int, rows: int = 8) -> dict[str, Any]:
    """A small tree of which each process has a half."""
    mesh = mesh_of([jax.device_count()])
    value = np.full((rows, 4), step, np.float32)
    return {"w": global_array(value, mesh, "x"), "step": step}


def is_step(found: Any, step: int) -> bool:
    """Whether what was loaded is what `tree` made, as far as this process has it."""
    shards = found["w"].addressable_shards
    return found["step"] == step and all((np.asarray(s.data) == step).all() for s in shards)


def steps_of(run: Any) -> list[int]:
    """The steps that this process knows."""
    return [entry.step for entry in run.checkpoints]


def many_saves(folder: str, count: int = 100) -> Any:
    """Saves `count` steps, with pauses of its own in every process and policies of its own mind."""
    import holdfast as hf

    random.seed(1000 + jax.process_index())
    keep = hf.training.preservation_policies.LatestN(3)
    state = tree(0)
    saved: list[int] = []
    with hf.training.Checkpointer(
        folder, save_decision_policy=OwnMind(), preservation_policy=keep
    ) as run:
        step = 0
        while len(saved) < count:
            time.sleep(random.random() * 0.02)
            if run.save_async(step, state):
                saved.append(step)
            step += 1
        time.sleep(random.random() * 0.2)
        run.wait()
        known = steps_of(run)
        again = outcome(run.save, saved[-1], state)
    threads = [thread.name for thread in threading.enumerate()]
    return {"saved": saved, "known": known, "again": again, "threads": len(threads)}


def scenes(folder: str) -> Any:
    """One scene of a training after the other, each with a run of its own."""
    acts = (
        many_saves,
        failed,
        disagreeing,
        managed,
        stopped,
        damaged,
        signalled,
        preempted,
        left,
        followed,
        moody,
        older,
        mixed,
    )
    return {act.__name__: outcome(act, f"{folder}/{act.__name__}") for act in acts}


def mixed(folder: str, count: int = 40) -> Any:
    """Calls of every kind, in one order, with pauses of its own in every process."""
    import holdfast as hf

    dice, pause = random.Random(40), random.Random(jax.process_index())
    there: dict[int, int] = {}  # what each step holds
    with hf.training.Checkpointer(folder) as run:
        for step in range(count):
            time.sleep(pause.random() * 0.02)
            if dice.random() < 0.5:
                run.save(step, tree(step), force=True)
            else:
                run.save_async(step, tree(step), force=True)
            there[step] = step
            chosen, what = dice.choice(list(there)), dice.randrange(5)
            if what in (1, 2, 4):
                run.wait()  # these look at what is committed
            if what == 0:
                run.save(chosen, tree(chosen + 100), force=True, overwrite=True)
                there[chosen] = chosen + 100
            elif what == 1:
                run.delete(chosen)
                del there[chosen]
            elif what == 2:
                run.pin(step, "newest")
                run.unpin("newest")
            elif what == 3:
                run.reload()
            elif there:
                newest = max(there)
                loaded = run.load(None, tree(newest), fallback=True)
                assert is_step(loaded, there[newest]), step
        run.wait()
        assert all(is_step(run.load(step, tree(step)), held) for step, held in there.items())
        return [sorted(there) == steps_of(run), steps_of(run)]


class Moody:
    """A policy that fails where and when it is told to."""

    def __init__(self) -> None:
        self.fails = False

    def should_save(self, step: Any, previous: Any, *, context: Any) -> bool:
        """Yes, or an error."""
        if self.fails:
            raise ArithmeticError("the policy has a bad day")
        return True

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        """All, or an error."""
        if self.fails:
            raise ArithmeticError("the policy has a bad day")
        return [True for _ in checkpoints]


def moody(folder: str) -> Any:
    """Policies and callbacks of the user fail; the others hear of it, and the next save works."""
    import holdfast as hf

    deciding, keeping = Moody(), Moody()

    def callback() -> None:
        if jax.process_index() == 1:
            raise ArithmeticError("the callback has a bad day")

    context = hf.Context(asynchronous=hf.options.AsyncOptions(post_finalization_callback=callback))
    with hf.training.Checkpointer(
        folder, save_decision_policy=deciding, preservation_policy=keeping, context=context
    ) as run:
        run.save(0, tree(0))
        deciding.fails = True
        decided = outcome(lambda: bool(run.save(1, tree(1))))
        deciding.fails = False
        again = bool(run.save(2, tree(2)))
        keeping.fails = True
        kept = outcome(lambda: bool(run.save(3, tree(3))))
        keeping.fails = False
        last = bool(run.save(4, tree(4)))
        return [decided, again, kept, last, steps_of(run)]


def older(folder: str) -> Any:
    """Every method of the v0 manager, with saves in the background."""
    import holdfast as hf

    a = hf.args
    options = hf.CheckpointManagerOptions(
        max_to_keep=2, best_fn=lambda m: m["score"], best_mode="max", save_interval_steps=2
    )
    found: dict[str, Any] = {}
    with hf.CheckpointManager(folder, options=options, item_names=("state", "extra")) as manager:
        for step, score in ((0, 0.5), (2, 0.9), (3, 1.0), (4, 0.1), (6, 0.7)):
            items = a.Composite(state=a.StandardSave(tree(step)), extra=a.JsonSave({"at": step}))
            saved = manager.save(step, args=items, metrics={"score": score})
            found[f"saved {step}"] = bool(saved)
        manager.wait_until_finished()
        manager.check_for_errors()
        found["steps"] = manager.all_steps()
        found["latest"], found["best"] = manager.latest_step(), manager.best_step()
        found["should"] = [manager.should_save(7), manager.should_save(8)]
        found["metrics"] = manager.metrics(2)
        wanted = a.Composite(state=a.StandardRestore(tree(0)), extra=a.JsonRestore())
        loaded = manager.restore(2, args=wanted)
        found["loaded"] = [is_step(loaded.state, 2), loaded.extra]
        found["items"] = sorted(manager.item_metadata(2).keys())
        manager.delete(2)
        manager.reload()
        found["left"] = manager.all_steps()
    default = hf.CheckpointManager(f"{folder}-default")
    default.save(1, args=a.StandardSave(tree(1)))
    default.wait_until_finished()
    found["default"] = is_step(default.restore(1, args=a.StandardRestore(tree(1))), 1)
    default.close()
    return found


def write_alone(folder: str, steps: Sequence[int]) -> threading.Thread:
    """Process 0 saves steps by itself, in the background, and keeps the newest."""
    import holdfast as hf

    by_itself = hf.options.MultiprocessingOptions(primary_host=0, active_processes={0})
    keep = hf.training.preservation_policies.LatestN(1)

    def write() -> None:
        context = hf.Context(multiprocessing=by_itself)
        with hf.training.Checkpointer(folder, context=context, preservation_policy=keep) as run:
            for step in steps:
                run.save(step, {"step": step})
                time.sleep(0.5)

    thread = threading.Thread(target=write)
    if jax.process_index() == 0:
        thread.start()
    return thread


def readers_of(folder: str) -> list[str]:
    """Who holds a step of a run."""
    return [p.name for p in (Path(folder) / "_readers").iterdir() if not p.name.startswith(".")]


def followed(folder: str) -> Any:
    """All read a run that process 0 writes by itself meanwhile; then one leaves the loop."""
    import holdfast as hf

    me = jax.process_index()
    iterate = hf.checkpoint_utils.checkpoints_iterator
    wait = hf.checkpoint_utils.wait_for_new_checkpoint
    writer, seen = write_alone(folder, range(6)), []
    for step in iterate(folder, seconds_to_sleep=0.05, timeout=4):
        time.sleep(random.random() * 0.5 * me)  # the other one is through long before
        seen.append([step, hf.load(f"{folder}/{step}")["step"], len(readers_of(folder))])
    with wait(folder, until_step=5, timeout=4) as reached:
        pass
    if me == 0:
        writer.join()

    def leave() -> None:
        for _ in iterate(folder, timeout=4):
            if me == 1:
                raise FloatingPointError("the score is NaN")

    left = outcome(leave)
    for _ in iterate(folder, timeout=4):
        break
    with wait(folder, until_step=9, timeout=0.2) as late:
        pass
    return [seen, reached, left, late, readers_of(folder)]


def signalled(folder: str) -> Any:
    """Process 1 alone sees a signal; all save the same step and end there."""
    import holdfast as hf

    with (
        hf.training.save_on_termination(60, signals=[signal.SIGUSR1]) as state,
        hf.training.Checkpointer(folder, save_decision_policy=Never()) as run,
    ):
        ended = None
        for step in range(100):
            if step == 3 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGUSR1)
            run.save(step, tree(step))
            if run.reached_preemption(step):
                ended = step
                break
        found = [ended, steps_of(run), state.requested]
        state._since = None  # the test's process goes on
    return found


def failed(folder: str) -> Any:
    """Process 1 fails in the background: the next save says so, on all, and the one after works."""
    import holdfast as hf

    with hf.training.Checkpointer(folder) as run:
        run.save(0, tree(0))
        with broken("write" if jax.process_index() == 1 else None):
            run.save_async(1, tree(1))
            time.sleep(0.3 * (1 - jax.process_index()))  # it may have failed here and not there
            told = outcome(run.save, 2, tree(2))
        again = outcome(lambda: bool(run.save(3, tree(3))))
        return {"told": told, "again": again, "known": steps_of(run)}


def disagreeing(folder: str) -> Any:
    """Different steps, different calls, and a lease of another job, are errors on all."""
    import holdfast as hf

    me = jax.process_index()
    with hf.training.Checkpointer(folder) as run:
        step = outcome(run.save, me, tree(0))
        call = outcome(run.save, 1, tree(1)) if me else outcome(run.wait)
        bad = {**tree(2), "bad": object()} if me else tree(2)
        leaf = outcome(run.save, 2, bad)
        saved = bool(run.save(5, tree(5)))
        return {"step": step, "call": call, "leaf": leaf, "saved": saved, "known": steps_of(run)}


def managed(folder: str) -> Any:
    """Everything that is not a save."""
    import holdfast as hf

    trash = hf.training.Trash()
    keep = hf.training.preservation_policies.LatestN(1)
    found: dict[str, Any] = {}
    with hf.training.Checkpointer(folder, preservation_policy=keep, trash=trash) as run:
        run.save(1, tree(1))
        run.pin(1, "first")
        run.save(2, tree(2))
        run.save(3, tree(3))
        run.wait()
        found["kept"] = steps_of(run)
        found["pinned"] = outcome(run.delete, 1)
        found["absent"] = outcome(run.unpin, "second")
        run.unpin("first")
        found["deleted"] = [run.delete(1), run.delete(7, missing_ok=True), steps_of(run)]
        run.restore_from_trash(2)
        found["restored"] = steps_of(run)
        found["verdicts"] = [[one.step, one.kept] for one in run.explain()]
        found["loaded"] = is_step(run.load(None, tree(0)), 3)
        found["should"] = [run.should_save(step) for step in (2, 4)]
    found["closed"] = outcome(run.save, 9, tree(9))
    options = hf.CheckpointManagerOptions(max_to_keep=2, save_interval_steps=2)
    with hf.CheckpointManager(f"{folder}-v0", options=options) as manager:
        for step in range(7):
            manager.save(step, args=hf.args.StandardSave(tree(step)))
        manager.wait_until_finished()
        loaded = manager.restore(None, args=hf.args.StandardRestore(tree(0)))
        found["v0"] = [manager.all_steps(), is_step(loaded, 6)]
    return found


def stopped(folder: str) -> Any:
    """A save is stopped while process 1 writes; the next one works."""
    import asyncio

    import holdfast as hf
    from holdfast_checkpointer.handlers.staged_tree import StagedPyTree

    original = StagedPyTree.write

    async def slow(*arguments: Any) -> Any:
        await asyncio.sleep(30 if jax.process_index() == 1 else 0)
        return await original(*arguments)

    with hf.training.Checkpointer(folder) as run:
        StagedPyTree.write = slow  # type: ignore[method-assign, assignment]
        run.save_async(1, tree(1))
        time.sleep(0.2)
        cancelled = run.cancel()
        StagedPyTree.write = original  # type: ignore[method-assign]
        return [cancelled, bool(run.save(2, tree(2))), steps_of(run)]


def left(folder: str) -> Any:
    """Process 1 leaves its training by an error; the others hear of it at their next call."""
    import holdfast as hf

    def train() -> None:
        with hf.training.Checkpointer(folder) as run:
            run.save(1, tree(1))
            if jax.process_index() == 1:
                raise FloatingPointError("the loss is NaN")
            run.save(2, tree(2))

    return outcome(train)


def resume(folder: str) -> Any:
    """Goes on where the run is, perhaps with another number of processes."""
    import holdfast as hf

    with hf.training.Checkpointer(folder) as run:
        assert run.latest is not None
        step = run.latest.step
        loaded = run.load(None, tree(0))
        saved = bool(run.save(step + 1, tree(step + 1)))
        return [step, loaded["step"], saved, steps_of(run)[-1] - step]


def damaged(folder: str, rows: int = 4096) -> Any:
    """A bit flips in a chunk that process 1 alone reads: all load the step before."""
    import holdfast as hf

    with hf.training.Checkpointer(folder) as run:
        for step in (1, 2):
            run.save(step, tree(step, rows))
        if jax.process_index() == 1:
            (chunks,) = Path(folder, "2/state/ocdbt.process_1/d").iterdir()
            data = bytearray(chunks.read_bytes())
            data[len(data) // 2] ^= 1
            chunks.write_bytes(data)
        run.reload()
        alone = outcome(lambda: is_step(run.load(2, tree(0, rows)), 2))
        target = {"w": 1, "other": 2} if jax.process_index() else tree(0, rows)
        misfit = outcome(run.load, 1, target, fallback=True)
        loaded = run.load(None, tree(0, rows), fallback=True)
        report = run.last_load
        assert report is not None
        return {
            "alone": alone,
            "misfit": misfit,
            "loaded": is_step(loaded, 1),
            "step": report.step,
            "skipped": [[one.step, one.problem] for one in report.skipped],
            "quarantined": sorted(run.quarantined),
            "known": steps_of(run),
            "saved": bool(run.save(2, tree(2, rows))),
            "after": [steps_of(run), sorted(run.quarantined)],
        }


def preempted(folder: str) -> Any:
    """Process 1 alone gets SIGTERM; JAX's service names a step for all."""
    import holdfast as hf

    policy = hf.training.save_decision_policies.PreemptionCheckpointingPolicy()
    with hf.training.Checkpointer(folder, save_decision_policy=policy) as run:
        for step in range(10_000):
            if step == 3 and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            run.save(step, tree(step))
            if run.reached_preemption(step):
                break
            time.sleep(0.01)
        return [step, steps_of(run)]


def train(folder: str, log: str, until: int) -> Any:
    """Goes on where the run is; notes each step that was said to be saved, until it is killed."""
    import holdfast as hf

    keep = hf.training.preservation_policies.LatestN(3)
    noted = Path(f"{log}-{jax.process_index()}")
    with hf.training.Checkpointer(folder, preservation_policy=keep) as run:
        found = steps_of(run)
        for step in found:
            assert is_step(run.load(step, tree(step)), step)
        step = found[-1] + 1 if found else 0
        last = step + until
        while step < last:
            if step % 2:
                run.save_async(step, tree(step)).result()
            else:
                run.save(step, tree(step))
            with noted.open("a") as file:
                file.write(f"{step}\n")
            step += 1
        run.wait()
        return {"found": found, "left": steps_of(run)}


def on_a_store(folder: str) -> Any:
    """A short training: saves, retention, a failure of one process, a step saved again, a load."""
    import holdfast as hf

    keep = hf.training.preservation_policies.LatestN(2)
    with hf.training.Checkpointer(folder, preservation_policy=keep) as run:
        for step in range(4):
            run.save_async(step, tree(step)).result()
        with broken("write" if jax.process_index() == 1 else None):
            told = outcome(run.save, 4, tree(4))
        again = bool(run.save(4, tree(4)))
        taken = outcome(run.save, 4, tree(4))
        overwritten = bool(run.save(4, tree(40), overwrite=True))
        loaded = is_step(run.load(4, tree(4)), 40) and is_step(run.load(3, tree(3)), 3)
        return {
            "told": told,
            "again": again,
            "taken": taken,
            "loaded": loaded and overwritten,
            "known": steps_of(run),
        }
