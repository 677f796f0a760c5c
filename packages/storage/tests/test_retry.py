"""What is tried again, how often, and for how long."""

import asyncio

import pytest

from holdfast_storage import errors
from holdfast_storage.retry import RetryPolicy


class Pauses:
    """Stands in for sleep: takes no time and remembers how long it would have been."""

    def __init__(self):
        self.seconds = []

    async def __call__(self, seconds):
        self.seconds.append(seconds)


def failing(error, times):
    calls = []

    async def call():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return call


@pytest.mark.parametrize("kind", [errors.TransientStorageError, errors.StorageTimeoutError])
async def test_what_may_pass_is_tried_again(kind):
    call = failing(kind("503"), times=2)
    assert await RetryPolicy().run(call, what="a get", sleep=Pauses()) == 3


async def test_pauses_are_drawn_below_a_bound_that_doubles_up_to_the_maximum():
    pauses = Pauses()
    policy = RetryPolicy(attempts=8, initial_s=1, maximum_s=5)
    await policy.run(failing(errors.TransientStorageError("503"), 7), what="a get", sleep=pauses)
    assert len(pauses.seconds) == 7
    for pause, bound in zip(pauses.seconds, (1, 2, 4, 5, 5, 5, 5), strict=True):
        assert 0 <= pause <= bound


async def test_the_last_failure_is_raised_as_it_was():
    error, pauses = errors.TransientStorageError("503 again"), Pauses()
    with pytest.raises(errors.TransientStorageError) as caught:
        await RetryPolicy(attempts=4).run(failing(error, 9), what="a get", sleep=pauses)
    assert caught.value is error
    assert len(pauses.seconds) == 3


@pytest.mark.parametrize(
    "error", [errors.ObjectNotFoundError("gone"), errors.ObjectExistsError("there"), ValueError()]
)
async def test_what_will_not_pass_is_not_tried_again(error):
    pauses = Pauses()
    with pytest.raises(type(error)):
        await RetryPolicy().run(failing(error, 1), what="a get", sleep=pauses)
    assert pauses.seconds == []


async def test_a_deadline_names_what_it_waited_for_and_the_last_failure():
    calls = []

    async def call():
        calls.append(1)
        if len(calls) == 1:
            raise errors.TransientStorageError("503")
        await asyncio.Event().wait()

    policy = RetryPolicy(deadline_s=0.05)
    with pytest.raises(errors.StorageTimeoutError, match=r"a get took.*503.*'k'") as caught:
        await policy.run(call, what="a get", key="k", root="r", sleep=Pauses())
    assert isinstance(caught.value, TimeoutError)


async def test_cancelling_the_caller_cancels_the_call():
    started = asyncio.Event()

    async def call():
        started.set()
        await asyncio.Event().wait()

    task = asyncio.ensure_future(RetryPolicy().run(call, what="a get"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
