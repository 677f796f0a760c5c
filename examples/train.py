"""A digit classifier that is killed with SIGKILL and goes on as if nothing had happened.

    uv run examples/train.py                     # the whole story, once
    uv run examples/train.py --url runs/mine     # a run of your own; the same again resumes it
    uv run examples/train.py --url runs/mine --crash-at 350

The data are the 1,797 scanned digits that scikit-learn ships. Where the checkpoints go is
the URL's business alone: the training code below is the same for every storage.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple, Self

# The model is far too small for an accelerator, and a CPU repeats its sums bit for bit.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

import holdfast as hf

URL = "runs/digits"
STEPS = 600
SAVE_EVERY = 100
SEED = 0
BATCH = 128
HIDDEN = 512
DROPOUT = 0.2

console = Console(highlight=False, soft_wrap=True)
optimizer = optax.adamw(1e-3)


class Digits(NamedTuple):
    """Images of 8 x 8 pixels as rows of 64 numbers from 0 to 1, and the digits they show."""

    images: np.ndarray
    labels: np.ndarray


class TrainState(NamedTuple):
    """Everything the next step depends on. What is saved is what comes back."""

    params: Any
    opt_state: Any
    key: jax.Array  # of the dropout masks
    step: int
    epoch: int  # with `position`: the batches that follow are the same after a resume
    position: int


# --- the model: nothing below knows about checkpoints --------------------------------------


def read_digits() -> tuple[Digits, Digits]:
    """The digits, shuffled once, as training and test sets."""
    # The file behind `sklearn.datasets.load_digits`, without three seconds of imports.
    package = importlib.metadata.distribution("scikit-learn")
    table = np.loadtxt(
        str(package.locate_file("sklearn/datasets/data/digits.csv.gz")), np.float32, delimiter=","
    )
    table = np.random.default_rng(SEED).permutation(table)
    images, labels = table[:, :64] / 16, table[:, 64].astype(np.int32)
    return Digits(images[:1437], labels[:1437]), Digits(images[1437:], labels[1437:])


def init_state() -> TrainState:
    """A state that no step has changed yet."""
    rng = np.random.default_rng(SEED)
    params = [
        {
            "kernel": jnp.asarray(rng.normal(0, (2 / m) ** 0.5, (m, n)), jnp.float32),
            "bias": jnp.zeros(n),
        }
        for m, n in ((64, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10))
    ]
    key = jax.random.key(SEED)
    return TrainState(params, jax.jit(optimizer.init)(params), key, step=0, epoch=0, position=0)


def forward(params: Any, images: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
    """The logits; with a key, as in training."""
    x = images
    for index, layer in enumerate(params):
        x = x @ layer["kernel"] + layer["bias"]
        if index == len(params) - 1:
            return x
        x = jax.nn.relu(x)
        if dropout_key is not None:
            kept = jax.random.bernoulli(
                jax.random.fold_in(dropout_key, index), 1 - DROPOUT, x.shape
            )
            x = jnp.where(kept, x / (1 - DROPOUT), 0)
    return x


# The old state is donated, as in a real job: a save that is still running must not mind.
@jax.jit(donate_argnums=(0, 1))
def update(
    params: Any, opt_state: Any, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """One step of the optimizer; also returns the next key and the loss."""
    key, dropout_key = jax.random.split(key)

    def loss_of(params: Any) -> jax.Array:
        logits = forward(params, images, dropout_key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, gradients = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(gradients, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, key, loss


def train_step(state: TrainState, data: Digits) -> tuple[TrainState, jax.Array]:
    """Takes the batch that is due, and one step on it."""
    order = np.random.default_rng([SEED, state.epoch]).permutation(len(data.labels))
    rows = order[state.position : state.position + BATCH]
    params, opt_state, key, loss = update(
        state.params, state.opt_state, state.key, data.images[rows], data.labels[rows]
    )
    epoch, position = state.epoch, state.position + BATCH
    if position + BATCH > len(order):
        epoch, position = epoch + 1, 0
    return TrainState(params, opt_state, key, state.step + 1, epoch, position), loss


def accuracy(params: Any, data: Digits) -> float:
    """The share of digits that are recognised, from 0 to 1."""
    logits = jax.jit(forward)(params, data.images)
    return float(np.mean(np.argmax(logits, axis=1) == data.labels))


# --- a run: train, save in the background, resume ------------------------------------------


def train(url: str, steps: int, save_every: int, crash_at: int | None) -> None:
    """Trains up to `steps` from the newest step that is whole, or from the beginning."""
    data, held_out = read_digits()
    checkpointer = hf.training.Checkpointer(
        url,
        save_decision_policy=hf.training.save_decision_policies.FixedIntervalPolicy(save_every),
        preservation_policy=hf.training.preservation_policies.LatestN(3),
    )
    with checkpointer:
        state = init_state()
        try:
            state = checkpointer.load(abstract_state=state, fallback=True)
        except hf.errors.StepNotFoundError:
            console.print(f"  starting; checkpoints go to {checkpointer.directory}")
        else:
            crash_at = None  # once is enough: the same command again goes on
            tell_resumed(checkpointer)
        with Display(steps, state.step) as display:
            while state.step < steps:
                state, loss = train_step(state, data)
                display.step(state.step, loss)
                if checkpointer.should_save(state.step) or state.step == steps:
                    save(checkpointer, state, loss, display)
                if state.step == crash_at:
                    display.close()  # the terminal; nothing of the checkpoint is tidied up
                    console.print(f"  [bold red]✗ kill -9 at step {state.step}[/]")
                    os.kill(os.getpid(), signal.SIGKILL)
            checkpointer.wait()
        found = accuracy(state.params, held_out)
        console.print(f"  [bold]accuracy after {state.step} steps: {found:.2%}[/]")


def tell_resumed(checkpointer: hf.training.Checkpointer) -> None:
    """Prints where the run goes on, and which newer steps turned out to be damaged."""
    report = checkpointer.last_load
    assert report is not None
    for skipped in report.skipped:
        console.print(f"  [yellow]! step {skipped.step} is {skipped.problem} and was skipped[/]")
        console.print(f"    {skipped.reason}", style="dim", markup=False)
    console.print(f"  [cyan]↻ resumed from step {report.step}[/] of {checkpointer.directory}")


def save(
    checkpointer: hf.training.Checkpointer, state: TrainState, loss: jax.Array, display: Display
) -> None:
    """Starts a save in the background and has the display tell when it has committed."""
    step, began = state.step, time.perf_counter()
    response = checkpointer.save_async(step, state, force=True, metrics={"loss": float(loss)})
    held_up = time.perf_counter() - began
    display.saving(step)
    response.on_complete(lambda _: display.committed(step, held_up, time.perf_counter() - began))


class Display:
    """A progress bar in a terminal; plain lines anywhere else."""

    def __init__(self, steps: int, start: int) -> None:
        self._steps = steps
        self._bar = Progress(
            TextColumn("  training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("{task.fields[checkpoint]}"),
            console=console,
            disable=not console.is_terminal,
        )
        state = f"[green]✓ step {start}" if start else ""
        self._task = self._bar.add_task(
            "", total=steps, completed=start, loss="      ", checkpoint=state
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def step(self, step: int, loss: jax.Array) -> None:
        """A step was taken."""
        if console.is_terminal:
            self._bar.update(self._task, completed=step, loss=f"{float(loss):.4f}")
        elif step % 100 == 0 or step == self._steps:
            console.print(f"  step {step:>4} of {self._steps}   loss {float(loss):.4f}")

    def saving(self, step: int) -> None:
        """A save has begun."""
        self._bar.update(self._task, checkpoint=f"[yellow]● step {step}")

    def committed(self, step: int, held_up: float, took: float) -> None:
        """A save has committed. Called from another thread."""
        self._bar.update(self._task, checkpoint=f"[green]✓ step {step}")
        console.print(
            f"  [green]✓ step {step:>4} committed[/] in the background in {took * 1e3:.0f} ms; "
            f"training waited {held_up * 1e3:.1f} ms"
        )

    def close(self) -> None:
        """Leaves the terminal as it was."""
        self._bar.stop()


# --- the story: uninterrupted, killed, resumed ---------------------------------------------


def tell_story() -> bool:
    """Runs it all once, in folders of its own; says whether the outcomes are equal."""
    base = f"{URL}/story-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    reference, killed = f"{base}/reference", f"{base}/killed"
    crash_at = 350
    console.print("\n[bold]1 of 3: a run that nothing interrupts[/]")
    train(reference, STEPS, SAVE_EVERY, crash_at=None)
    command = ["--url", killed, "--crash-at", str(crash_at)]
    console.print(f"\n[bold]2 of 3: another, killed at step {crash_at}[/]")
    run_self(command, expect=-signal.SIGKILL)
    console.print("\n[bold]3 of 3: the same command again[/]")
    run_self(command, expect=0)
    return verdict(reference, killed)


def run_self(arguments: list[str], *, expect: int) -> None:
    """Runs this file in a process of its own; exits if that does not end as expected."""
    console.print(f"  [dim]$ python examples/train.py {shlex.join(arguments)}[/]")
    sys.stdout.flush()
    ended = subprocess.run([sys.executable, __file__, *arguments], check=False).returncode
    if expect == 0 and ended == -signal.SIGKILL:  # it began anew, and killed itself once more
        raise SystemExit(
            "no checkpoint of the killed run outlived its process: this storage is good for "
            "tests; choose another with --url or HOLDFAST_ROOT"
        )
    if ended != expect:
        raise SystemExit(f"that process ended with {ended}, not with {expect}")


def verdict(reference: str, killed: str) -> bool:
    """Compares the final states of two runs, leaf by leaf and bit for bit, and prints it."""
    _, held_out = read_digits()
    table = Table(title="\nThe verdict", title_justify="left", title_style="bold")
    for heading in ("run", "steps", "test accuracy", "final loss"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    states = []
    for name, url in (("uninterrupted", reference), ("killed and resumed", killed)):
        with hf.training.Checkpointer(url) as run:
            state = run.load(abstract_state=init_state())
            loss = (run.latest.metrics or {})["loss"] if run.latest else float("nan")
        table.add_row(
            name, str(state.step), f"{accuracy(state.params, held_out):.2%}", f"{loss:.8f}"
        )
        states.append(state)
    console.print(table)
    equal = same_bits(*states)
    leaves = len(jax.tree.leaves(states[0]))
    if equal:
        console.print(
            f"[bold green]✓ identical, bit for bit[/], in all {leaves} leaves of the state"
        )
    else:
        console.print("[bold red]✗ the two runs differ[/]")
    return equal


def same_bits(first: TrainState, second: TrainState) -> bool:
    """Whether parameters, optimizer, key and position in the data are the same, exactly."""

    def bits(leaf: Any) -> bytes:
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        return np.asarray(leaf).tobytes()

    one, other = jax.tree.leaves(first), jax.tree.leaves(second)
    return list(map(bits, one)) == list(map(bits, other))


def main() -> None:
    """Tells the story if called without arguments, and otherwise trains."""
    parser = argparse.ArgumentParser(
        description="Train a digit classifier. Without arguments: the whole story, once."
    )
    add = parser.add_argument
    add("--url", default=URL, help="where the run's checkpoints go (default: %(default)s)")
    add("--steps", type=positive, default=STEPS, help="how far to train (default: %(default)s)")
    add("--save-every", type=positive, default=SAVE_EVERY, help="in steps (default: %(default)s)")
    add("--crash-at", type=positive, help="kill -9 at this step, unless the run was resumed")
    given = parser.parse_args()
    if len(sys.argv) > 1:
        train(given.url, given.steps, given.save_every, given.crash_at)
    elif not tell_story():
        raise SystemExit(1)


def positive(text: str) -> int:
    """Parses a number of steps."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


if __name__ == "__main__":
    main()
