"""The one loop on which storage work runs."""

import asyncio
import os
import subprocess
import sys
import threading
import warnings

import pytest

from holdfast_storage import get_loop
from holdfast_storage.loop import StorageLoop
from holdfast_storage.threads import StartedPool


async def thread_name():
    return threading.current_thread().name


def test_the_loop_serves_any_thread_and_a_running_loop():
    async def inside():
        return get_loop().run(thread_name())

    assert get_loop().run(thread_name()) == "holdfast-storage"
    assert asyncio.run(inside()) == "holdfast-storage"
    found = []
    thread = threading.Thread(target=lambda: found.append(get_loop().run(thread_name())))
    thread.start()
    thread.join()
    assert found == ["holdfast-storage"]


def test_there_is_one_loop_however_many_ask_at_once():
    together, found = threading.Barrier(8), []

    def ask():
        together.wait()
        found.append(get_loop())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_what_was_submitted_goes_on_beside_the_caller():
    go_on = threading.Event()

    async def wait():
        await asyncio.to_thread(go_on.wait)
        return "done"

    future = get_loop().submit(wait())
    assert not future.done()
    go_on.set()
    assert future.result(30) == "done"


def test_an_error_reaches_the_caller_as_it_was():
    error = ValueError("mine")

    async def fail():
        raise error

    with pytest.raises(ValueError) as caught:
        get_loop().run(fail())
    assert caught.value is error


def test_blocking_on_the_loop_itself_is_refused():
    async def deadlock():
        get_loop().run(asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="storage loop"):
        get_loop().run(deadlock())


def test_a_timeout_cancels_what_runs():
    cancelled = threading.Event()

    async def forever():
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError):
        get_loop().run(forever(), timeout=0.01)
    assert cancelled.wait(30)


def test_a_stopped_loop_has_no_thread_left():
    loop = StorageLoop("holdfast-test")
    assert loop.run(thread_name()) == "holdfast-test"
    loop.stop()
    assert "holdfast-test" not in {thread.name for thread in threading.enumerate()}


def test_a_forked_child_gets_a_loop_of_its_own():
    get_loop().run(asyncio.sleep(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that forking with threads may deadlock is the point
        pid = os.fork()
    if pid == 0:
        try:
            get_loop().run(asyncio.sleep(0), timeout=30)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_the_loop_serves_threads_that_outlive_the_main_thread():
    script = """
import asyncio, threading
from holdfast_storage import get_loop
get_loop()
def late():
    threading.main_thread().join()
    print(get_loop().run(asyncio.sleep(0, "served")), flush=True)
threading.Thread(target=late).start()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("served", "")


def test_a_pool_does_what_is_queued_and_then_ends():
    pool = StartedPool(2, "pool")
    gate = threading.Event()
    held = [pool.submit(gate.wait) for _ in range(2)]
    queued, failing = pool.submit(int, "7"), pool.submit(int, "x")
    dropped = pool.submit(int)
    assert dropped.cancel()
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="shut down"):
        pool.submit(int)
    gate.set()
    assert [one.result(30) for one in (*held, queued)] == [True, True, 7]
    assert isinstance(failing.exception(30), ValueError)
    pool.shutdown()
    assert not any(thread.is_alive() for thread in pool._started)


def test_a_pool_that_nobody_has_any_more_ends_its_threads():
    pool = StartedPool(2, "pool")
    threads = pool._started
    del pool
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_what_has_not_begun_is_dropped_on_request():
    pool = StartedPool(1, "pool")
    gate = threading.Event()
    pool.submit(gate.wait)
    queued = pool.submit(int)
    threading.Timer(0.05, gate.set).start()
    pool.shutdown(cancel_futures=True)
    assert queued.cancelled()
