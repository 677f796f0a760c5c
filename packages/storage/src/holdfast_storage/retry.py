"""Retries with jitter and a deadline, for calls that may be repeated safely."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import tenacity

from holdfast_storage import errors

T = TypeVar("T")
RETRYABLE = (errors.TransientStorageError, errors.StorageTimeoutError)


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long.

    Attributes:
        attempts: At most.
        initial_s: Upper bound of the first pause; it doubles each time, and the pause is
            drawn between zero and the bound, so that many clients spread out.
        maximum_s: The bound never grows beyond this.
        deadline_s: For everything together, pauses included.
    """

    attempts: int = 6
    initial_s: float = 0.2
    maximum_s: float = 10.0
    deadline_s: float = 120.0

    async def run(
        self,
        call: Callable[[], Awaitable[T]],
        *,
        what: str,
        key: str = "",
        root: str = "",
        sleep: Callable[[float], Awaitable[Any]] = asyncio.sleep,
    ) -> T:
        """Calls until it succeeds, fails for good, or time is up.

        Only failures that may pass (`TransientStorageError`, `StorageTimeoutError`) are
        retried, so `call` must be safe to repeat.

        Raises:
            StorageTimeoutError: The deadline passed; names `what` and the last failure.
            StorageError: What the last attempt raised.
        """
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(multiplier=self.initial_s, max=self.maximum_s),
            retry=tenacity.retry_if_exception_type(RETRYABLE),
            reraise=True,
            sleep=sleep,
        )
        last: BaseException | None = None

        async def attempt() -> T:
            nonlocal last
            try:
                return await call()
            except RETRYABLE as error:
                last = error
                raise

        try:
            async with asyncio.timeout(self.deadline_s) as limit:
                return await retrying(attempt)
        except TimeoutError as error:
            if not limit.expired():
                raise
            seen = f"; last failure: {last}" if last else ""
            raise errors.StorageTimeoutError(
                f"{what} took longer than {self.deadline_s} s{seen}", key=key, root=root
            ) from error
