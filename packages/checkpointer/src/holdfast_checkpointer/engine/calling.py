"""What a call does by itself, before it meets those of the other processes of the job."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import jax

from holdfast_checkpointer.multihost.calls import Call
from holdfast_checkpointer.multihost.membership import Membership
from holdfast_checkpointer.options import Context, MultiprocessingOptions
from holdfast_storage.loop import get_loop


@contextlib.contextmanager
def call_of(choose: Callable[[], Context]) -> Iterator[Call | None]:
    """Validates and stages in a block whose errors are told to the other processes.

    They make the same call, so they raise `RemoteProcessError` within seconds, whatever path
    or options this process was given.

    Args:
        choose: Gives the options of the call; its errors are raised in the block, not here.

    Yields:
        What the processes are to meet by; None in a job of one process.
    """
    call = _begin(choose)
    try:
        yield call
    except BaseException as error:  # Ctrl-C too: the others would wait for it until the deadline
        if call is not None:
            get_loop().run(call.void(error, "the validation"))
        raise


def _begin(choose: Callable[[], Context]) -> Call | None:
    chosen = MultiprocessingOptions()
    with contextlib.suppress(TypeError, ValueError):  # the block meets it again
        asked = choose().multiprocessing
        asked.check_against(jax.process_count())
        chosen = asked
    active = chosen.active_processes
    if active is not None and jax.process_index() not in active:
        return None  # refused in the block; those that take part do not wait for it
    job = Membership.of(chosen)
    return None if job.alone else job.coordinator(chosen.deadline_secs).call()
