"""JAX's distributed runtime as a key/value service.

`jax.distributed` offers its host-side store to nobody in public. Every private name that
holdfast uses of it is in this module, and `tests/test_jax_service.py` of this package says
which one has moved.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from holdfast_checkpointer.multihost.errors import CoordinationError
from holdfast_checkpointer.multihost.service import KeyTaken

T = TypeVar("T")
CLIENT_METHODS = (
    "blocking_key_value_get_bytes",
    "key_value_delete",
    "key_value_dir_get_bytes",
    "key_value_increment",
    "key_value_set_bytes",
)


def runtime() -> Any:
    """The state of `jax.distributed` in this process."""
    from jax._src import distributed

    return distributed.global_state


def process_index() -> int:
    """This process in `jax.distributed`; 0 where it was not initialised. Touches no device."""
    return int(runtime().process_id or 0)


def process_count() -> int:
    """How many processes `jax.distributed` has; 1 where it was not initialised."""
    state = runtime()
    return int(state.num_processes or 1) if state.client is not None else 1


class JaxService:
    """The store of the job's coordination service; the first process of the job holds it."""

    def __init__(self) -> None:
        self._client = runtime().client
        if self._client is None:
            raise CoordinationError(
                "jax.distributed is not initialised in this process: call "
                "jax.distributed.initialize() first"
            )

    async def put(self, key: str, value: bytes, *, overwrite: bool = False) -> None:
        """See `KeyValueService.put`."""
        await self._call(key, lambda: self._client.key_value_set_bytes(key, value, overwrite))

    async def get(self, key: str, *, timeout_s: float) -> bytes:
        """See `KeyValueService.get`."""
        limit_ms = max(1, int(timeout_s * 1000))
        found = await self._call(
            key, lambda: self._client.blocking_key_value_get_bytes(key, limit_ms)
        )
        return bytes(found)

    async def list(self, prefix: str) -> dict[str, bytes]:
        """See `KeyValueService.list`."""
        found = await self._call(prefix, lambda: self._client.key_value_dir_get_bytes(prefix))
        return {key: bytes(value) for key, value in found}

    async def increment(self, key: str) -> int:
        """See `KeyValueService.increment`."""
        return int(await self._call(key, lambda: self._client.key_value_increment(key, 1)))

    async def delete(self, prefix: str) -> None:
        """See `KeyValueService.delete`."""
        await self._call(prefix, lambda: self._client.key_value_delete(prefix))

    async def _call(self, key: str, function: Callable[[], T]) -> T:
        try:
            return await _in_thread(function)
        except Exception as error:
            raise _translated(key, error) from error


def _translated(key: str, error: Exception) -> Exception:
    """The runtime tells its errors apart by the first word of the message."""
    status = str(error).partition(":")[0]
    if status == "ALREADY_EXISTS":
        return KeyTaken(key)
    if status == "DEADLINE_EXCEEDED":
        return TimeoutError(f"{key} is not set")
    return CoordinationError(f"JAX's coordination service failed at {key!r}: {error}")


async def _in_thread(function: Callable[[], T]) -> T:
    """Calls a function in a daemon thread of its own.

    A wait may be abandoned and cannot be interrupted: a pool would run full of such waits,
    and would hold up the end of the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(set_it: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            set_it(value)

    def call() -> None:
        try:
            value = function()
        except Exception as error:  # noqa: BLE001 - handed on
            told: tuple[Callable[[Any], None], Any] = (done.set_exception, error)
        else:
            told = (done.set_result, value)
        try:
            loop.call_soon_threadsafe(settle, *told)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return

    threading.Thread(target=call, name="holdfast-coordination", daemon=True).start()
    return await done
