"""JAX's distributed runtime as a key/value service.

`jax.distributed` offers its host-side store to nobody in public. Every private name that
holdfast uses of it is in this module, and `tests/test_jax_service.py` of this package says
which one has moved.
"""

from __future__ import annotations

import asyncio
import atexit
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from holdfast_checkpointer.multihost.errors import CoordinationError
from holdfast_checkpointer.multihost.service import KeyTaken
from holdfast_storage.threads import StartedPool

T = TypeVar("T")
_ONE_WAIT_S = 10.0
_AT_EXIT = 6
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
        until = time.monotonic() + timeout_s
        given_up = threading.Event()

        def ask() -> Any:
            """A wait cannot be interrupted: it is made of short ones."""
            while True:
                left = until - time.monotonic()
                limit_ms = max(1, int(min(left, _ONE_WAIT_S) * 1000))
                try:
                    return self._client.blocking_key_value_get_bytes(key, limit_ms)
                except Exception as error:
                    if not _expired(error) or left <= _ONE_WAIT_S or given_up.is_set():
                        raise

        try:
            return bytes(await self._call(key, ask))
        finally:
            given_up.set()

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
    if str(error).partition(":")[0] == "ALREADY_EXISTS":
        return KeyTaken(key)
    if _expired(error):
        return TimeoutError(f"{key} is not set")
    return CoordinationError(f"JAX's coordination service failed at {key!r}: {error}")


def _expired(error: Exception) -> bool:
    return str(error).partition(":")[0] == "DEADLINE_EXCEEDED"


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

    _threads.start(call)
    return await done


class _Threads:
    """The threads that are in a call, which must have left it when the interpreter ends.

    One that comes back from the runtime while Python is being taken down ends the process by
    an abort, and its exit status with it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._spare: StartedPool | None = None

    def start(self, call: Callable[[], None]) -> None:
        """Runs a call in a thread of its own; at exit in one that was there before."""
        with self._lock:
            if self._spare is None:
                self._spare = StartedPool(_AT_EXIT, "holdfast-coordination-at-exit")
                atexit.register(self._join)
            spare = self._spare
        thread = threading.Thread(target=call, name="holdfast-coordination", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # from Python 3.12 on none begins once the main thread has ended
            spare.submit(call)
            return
        with self._lock:
            self._running.add(thread)

    def _join(self) -> None:
        until = time.monotonic() + _ONE_WAIT_S + 1.0
        with self._lock:
            running = list(self._running)
        for thread in running:
            thread.join(max(0.0, until - time.monotonic()))


_threads = _Threads()
