"""The functions for jobs that read a run while another one writes it."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from typing import Any, SupportsIndex

from holdfast_checkpointer import options
from holdfast_manager.following.follower import Follower, Waiting
from holdfast_manager.following.together import Together
from holdfast_manager.step_names import NameFormat, check_name_format, standard_name_format
from holdfast_manager.steps import check_step

_log = logging.getLogger(__name__)


def checkpoints_iterator(
    checkpoint_dir: str | PathLike[str],
    *,
    min_interval_secs: float = 0,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat | None = None,
    snapshot_dir: str | PathLike[str] | None = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
) -> Iterator[int]:
    """Yields the newest step of a run whenever there is a newer one, for evaluation jobs.

    Steps that were overtaken meanwhile are left out, and so are steps that are not whole or
    were found damaged. While the caller has a step no policy of the writing job removes it:
    the iterator holds it by a reader's lease (see `holdfast.training.Checkpointer.reading`)
    until the next one is asked for, the loop is left, or the iterator is closed. Nothing is
    copied. The folder need not exist yet.

    In a job of several processes all of them loop: one looks, calls `timeout_fn` and holds the
    step until every process asks for the next one; all get the same steps. Who leaves the loop
    early gives up the step, and others that go on are told.

    A request that fails in a way that may pass (a timeout, a 503) is logged, and the run is
    looked at again after `seconds_to_sleep`, until the wait expires.

    Args:
        checkpoint_dir: The run's path or URL; relative ones resolve against `HOLDFAST_ROOT`.
        min_interval_secs: Seconds from one yield to the next, at least.
        seconds_to_sleep: Seconds between two looks.
        timeout: Seconds without a newer step after which the wait expires; None is never.
        timeout_fn: Called once whenever a wait has expired. If it returns false a new wait
            begins. If it returns true the iterator looks a last time and then stops. Without
            it the iterator stops when a wait expires.
        step_prefix: As in `holdfast.path.step.standard_name_format`.
        step_format_fixed_length: As there.
        step_name_format: How the folders of steps are called, instead of these two.
        snapshot_dir: Makes no difference: there are no snapshots. This is said in the log.
        set_immutable: As `snapshot_dir`.
        ignore_snapshot_errors: If false, a run that this process may read and not write to is
            refused. Otherwise its steps are yielded without a lease, which is said once in
            the log.

    Yields:
        Steps, each larger than the one before. `Checkpointer(checkpoint_dir).load(step)`
        loads one.

    Raises:
        ValueError: An argument cannot be used.
        TypeError: An argument is of another kind.
        StoragePermissionError: The run may not be read.
        RemoteProcessError: Another process of the job failed, or has left the loop.

    Examples:
        >>> import holdfast as hf
        >>> with hf.training.Checkpointer("memory://doc/followed") as run:
        ...     saved = [run.save(step, {"loss": 1 / step}) for step in (1, 2)]
        >>> reader = hf.training.Checkpointer("memory://doc/followed")
        >>> for step in hf.checkpoint_utils.checkpoints_iterator(
        ...     "memory://doc/followed", timeout=0
        ... ):
        ...     print(step, reader.load(step))
        2 {'loss': 0.5}
    """
    interval = _seconds("min_interval_secs", min_interval_secs)
    names = _names(step_prefix, step_format_fixed_length, step_name_format)
    waiting = _waiting(seconds_to_sleep, timeout, timeout_fn, ignore_snapshot_errors)
    together = _together(checkpoint_dir, waiting, names)
    _say_what_makes_no_difference(snapshot_dir=snapshot_dir, set_immutable=set_immutable)
    return _follow(together, interval)


def wait_for_new_checkpoint(
    checkpoint_dir: str | PathLike[str],
    *,
    until_step: SupportsIndex | None = None,
    seconds_to_sleep: float = 1,
    timeout: float | None = None,
    timeout_fn: Callable[[], bool] | None = None,
    step_prefix: str | None = None,
    step_format_fixed_length: int | None = None,
    step_name_format: NameFormat | None = None,
    snapshot_dir: str | PathLike[str] | None = None,
    set_immutable: bool | None = None,
    ignore_snapshot_errors: bool | None = True,
) -> AbstractContextManager[int]:
    """Waits for a step, and holds it while a block reads it.

    In a job of several processes all of them wait, get the same step, and leave the block when
    all have come to its end.

    Args:
        checkpoint_dir: As in `checkpoints_iterator`.
        until_step: The step that is to be reached; None is any.
        seconds_to_sleep: As in `checkpoints_iterator`.
        timeout: Seconds after which the wait expires; None is never.
        timeout_fn: As in `checkpoints_iterator`.
        step_prefix: As in `checkpoints_iterator`.
        step_format_fixed_length: As in `checkpoints_iterator`.
        step_name_format: As in `checkpoints_iterator`.
        snapshot_dir: As in `checkpoints_iterator`.
        set_immutable: As in `checkpoints_iterator`.
        ignore_snapshot_errors: As in `checkpoints_iterator`.

    Returns:
        A context manager that gives the newest step, which is `until_step` or later, or -1 if
        the wait expired.

    Raises:
        ValueError: An argument cannot be used.
        TypeError: An argument is of another kind.
        StoragePermissionError: The run may not be read; raised where the block begins.
        RemoteProcessError: Another process of the job failed, or has left the loop.

    Examples:
        >>> import holdfast as hf
        >>> with hf.checkpoint_utils.wait_for_new_checkpoint(
        ...     "memory://doc/nothing-yet", until_step=100, timeout=0
        ... ) as step:
        ...     print(step)
        -1
    """
    at_least = 0 if until_step is None else check_step(until_step)
    names = _names(step_prefix, step_format_fixed_length, step_name_format)
    waiting = _waiting(seconds_to_sleep, timeout, timeout_fn, ignore_snapshot_errors)
    together = _together(checkpoint_dir, waiting, names)
    _say_what_makes_no_difference(snapshot_dir=snapshot_dir, set_immutable=set_immutable)
    return _waited_for(together, at_least)


def _follow(together: Together, min_interval: float) -> Iterator[int]:
    at_least, follower = 0, together.follower
    while True:
        step = together.wait(at_least)
        if step is None:
            return
        began = follower.now()
        at_least = step + 1
        try:
            yield step
        except BaseException as error:
            together.leave(error)
            raise
        together.has_read()
        follower.pause(began + min_interval - follower.now())


@contextmanager
def _waited_for(together: Together, at_least: int) -> Iterator[int]:
    step = together.wait(at_least)
    try:
        yield -1 if step is None else step
    except BaseException as error:
        together.leave(error)
        raise
    together.end()


def _together(checkpoint_dir: str | PathLike[str], waiting: Waiting, names: NameFormat) -> Together:
    context = options.current()
    backend = context.open_backend(checkpoint_dir)
    return Together(Follower(backend, names, waiting), backend.root, context)


def _waiting(
    seconds_to_sleep: Any, timeout: Any, timeout_fn: Any, ignore_snapshot_errors: bool | None
) -> Waiting:
    if timeout_fn is not None and not callable(timeout_fn):
        raise TypeError(
            f"timeout_fn is called without arguments and returns a bool, got {timeout_fn!r}"
        )
    return Waiting(
        _seconds("seconds_to_sleep", seconds_to_sleep),
        None if timeout is None else _seconds("timeout", timeout),
        timeout_fn,
        required=ignore_snapshot_errors is False,
    )


def _names(
    step_prefix: str | None, fixed_length: int | None, name_format: NameFormat | None
) -> NameFormat:
    if name_format is None:
        return standard_name_format(step_prefix=step_prefix, step_format_fixed_length=fixed_length)
    if step_prefix is not None or fixed_length is not None:
        raise ValueError(
            "step_name_format says how folders are called; step_prefix and "
            "step_format_fixed_length are given instead of it, not with it"
        )
    return check_name_format(name_format)


def _seconds(what: str, value: Any) -> float:
    accepted = f"{what} is a number of seconds >= 0"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{accepted}, got {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{accepted}, got {value!r}")
    return float(value)


def _say_what_makes_no_difference(**given: Any) -> None:
    for name, value in given.items():
        if value is not None:
            _log.warning(
                "%s=%r makes no difference: a step that is read is not copied, but held in its "
                "place by a lease",
                name,
                value,
            )
