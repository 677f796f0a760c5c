"""Background saves: what is snapshotted, who is told, and what happens at the exit."""

import asyncio
import concurrent.futures
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import holdfast_checkpointer as hc
from holdfast_checkpointer.engine import saving


@pytest.fixture
def gate(monkeypatch):
    """Holds saves back, after their snapshot, until it is opened."""
    opened = threading.Event()
    write = saving.write_checkpoint

    async def held(*args, **kwargs):
        await asyncio.to_thread(opened.wait, 60)
        return await write(*args, **kwargs)

    monkeypatch.setattr("holdfast_checkpointer.functions.write_checkpoint", held)
    yield opened
    opened.set()


def test_numpy_arrays_may_be_changed_once_save_async_returns(place, gate):
    big, small = np.arange(500_000.0), np.arange(3)
    response = hc.save_async(place, {"big": big, "small": small})
    big[:] = -1
    small[:] = -1
    assert not response.done()
    gate.set()
    response.result()
    found = hc.load(place)
    np.testing.assert_array_equal(found["big"], np.arange(500_000.0))
    np.testing.assert_array_equal(found["small"], np.arange(3))


def test_jax_arrays_may_be_donated_while_they_are_saved(place, gate):
    @jax.jit
    def make():
        return jnp.arange(300_000.0)

    step = jax.jit(lambda x: x * 0 - 1, donate_argnums=0)
    array = make()
    response = hc.save_async(place, {"w": array})
    for _ in range(3):
        array = step(array)
        array.block_until_ready()
    gate.set()
    response.result()
    np.testing.assert_array_equal(hc.load(place)["w"], np.arange(300_000.0, dtype=np.float32))


def test_a_tree_may_be_changed_once_save_async_returns(place, gate):
    tree = {"a": {"b": 1}}
    response = hc.save_async(place, tree)
    tree["a"]["b"] = 2
    tree["c"] = 3
    gate.set()
    response.result()
    assert hc.load(place) == {"a": {"b": 1}}


def test_nothing_is_visible_before_the_commit(place, gate):
    response = hc.save_async(place, {"a": 1})
    assert not hc.is_checkpoint(place)
    with pytest.raises(TimeoutError, match="still running"):
        response.result(timeout=0.01)
    gate.set()
    response.result()
    assert hc.is_checkpoint(place)


def test_on_complete_is_called_after_the_commit_and_not_on_failure(place, gate):
    seen = []
    called = threading.Event()
    response = hc.save_async(place, {"a": 1})

    def note(value):
        seen.append(value)
        called.set()

    response.on_complete(note)
    gate.set()
    response.result()
    assert called.wait(30)
    assert seen == [None]
    failed = hc.save_async(place, {"a": 1})
    failed.on_complete(lambda value: seen.append("never"))
    assert isinstance(failed.exception(), FileExistsError)
    assert seen == [None]


def test_a_callback_may_call_holdfast_and_may_fail(place, gate, caplog):
    found = []
    called = threading.Event()
    response = hc.save_async(place, {"a": 1})

    def look(value):
        found.append(hc.load(place))
        called.set()
        raise ZeroDivisionError

    response.on_complete(look)
    gate.set()
    response.result()
    assert called.wait(60)
    assert found == [{"a": 1}]
    late = []
    response.on_complete(late.append)
    assert late == [None]


def test_cancel_leaves_nothing_behind(tmp_path, gate):
    response = hc.save_async(tmp_path / "c", {"a": np.ones(100)})
    assert response.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        response.result(timeout=60)
    gate.set()
    assert list(tmp_path.iterdir()) == []
    assert response.cancel() is False
    hc.save(tmp_path / "c", {"a": 1})


def test_cancel_while_writing_removes_the_staging(tmp_path, monkeypatch):
    from holdfast_checkpointer.handlers import pytree

    writing = threading.Event()

    async def forever(self, area):
        await area.put("something", b"half")
        writing.set()
        await asyncio.sleep(600)

    monkeypatch.setattr(pytree.StagedPyTree, "write", forever)
    response = hc.save_async(tmp_path / "c", {"a": 1})
    assert writing.wait(30)
    assert len(list(tmp_path.iterdir())) == 1
    response.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        response.result(timeout=60)
    assert list(tmp_path.iterdir()) == []


def test_cancel_while_the_attempt_is_begun_leaves_nothing(tmp_path, monkeypatch):
    from holdfast_local.backend import LocalBackend

    beginning, put = threading.Event(), LocalBackend.put

    async def slow(self, key, data, **kwargs):
        if key.endswith("_ATTEMPT.json"):
            beginning.set()
            # As a request on its way: it has its effect although nobody waits any more.
            return await asyncio.shield(asyncio.ensure_future(later(self, key, data, kwargs)))
        return await put(self, key, data, **kwargs)

    async def later(self, key, data, kwargs):
        await asyncio.sleep(0.2)
        return await put(self, key, data, **kwargs)

    monkeypatch.setattr(LocalBackend, "put", slow)
    response = hc.save_async(tmp_path / "c", {"a": 1})
    assert beginning.wait(30)
    response.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        response.result(timeout=60)
    hc.save(tmp_path / "d", {"a": 1})  # takes longer than the request that was on its way
    assert [path.name for path in tmp_path.iterdir()] == ["d"]


def test_a_deadline_names_what_took_too_long(tmp_path, monkeypatch):
    from holdfast_checkpointer.handlers import pytree

    async def forever(self, area):
        await asyncio.sleep(600)

    monkeypatch.setattr(pytree.StagedPyTree, "write", forever)
    quick = hc.Context(asynchronous=hc.options.AsyncOptions(timeout_secs=0.2))
    with pytest.raises(TimeoutError, match=r"the save to .*c took longer than 0.2 s"):
        hc.save(tmp_path / "c", {"a": 1}, context=quick)
    assert list(tmp_path.iterdir()) == []


def test_work_that_does_not_stop_at_its_deadline_is_given_up_and_holds_nobody(place, monkeypatch):
    from holdfast_checkpointer.engine import response

    class Endless(hc.PyTreeCheckpointHandler):
        async def async_save(self, directory, args):
            return [concurrent.futures.Future()]

    monkeypatch.setattr(response, "STOPPING_SECONDS", 0.1)
    checkpointer = hc.AsyncCheckpointer(Endless(), timeout_secs=0.1)
    checkpointer.save(place, args=hc.args.PyTreeSave({"a": 1}))
    with pytest.raises(TimeoutError, match="did not stop in the 0.1 s after that: it was given up"):
        checkpointer.wait_until_finished()
    checkpointer.close()
    assert not hc.is_checkpoint(place)


def test_a_failure_is_told_to_whoever_waits_for_it_and_to_nobody_else(place, gate):
    gate.set()
    hc.save(place, {"a": 1})
    gate.clear()
    response = hc.save_async(place, {"a": 2})
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        told = pool.submit(response.exception)
        while not response._asking:
            pass
        gate.set()
        response.wait()
        response.raise_untold()  # the other thread is told
        assert isinstance(told.result(), FileExistsError)
    response.raise_untold()
    assert told.result().__notes__ == [f"(during the save to {place})"]


def test_an_interrupt_while_waiting_tells_nothing(place, gate, monkeypatch):
    gate.set()
    hc.save(place, {"a": 1})
    gate.clear()
    response = hc.save_async(place, {"a": 2})

    def interrupted(timeout):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(response._future, "exception", interrupted)
        response.result()
    gate.set()
    response.wait()
    with pytest.raises(FileExistsError):
        response.raise_untold()
    response.raise_untold()


def test_it_works_inside_a_running_event_loop(place):
    async def main():
        await hc.save_async(place, {"a": 1})
        hc.save(place + "2", {"a": 2})
        assert (await hc.load_async(place)) == {"a": 1}
        assert hc.load(place + "2") == {"a": 2}
        with pytest.raises(FileExistsError):
            await hc.save_async(place, {"a": 1})
        waiter = asyncio.ensure_future(_await(hc.load_async(place)))
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter

    async def _await(response):
        return await response

    asyncio.run(main())


def test_it_works_from_eight_threads(place):
    failures = []

    def work(number):
        try:
            for turn in range(3):
                path = f"{place}/{number}-{turn}"
                hc.save(path, {"n": np.full(1000, number), "t": turn})
                found = hc.load(path)
                assert found["t"] == turn
                assert (found["n"] == number).all()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_of_many_writers_to_one_path_one_wins(place):
    responses = [hc.save_async(place, {"n": n, "a": np.full(100, n)}) for n in range(8)]
    errors = [response.exception() for response in responses]
    winners = [n for n, error in enumerate(errors) if error is None]
    assert len(winners) == 1
    assert all(isinstance(error, FileExistsError) for error in errors if error)
    found = hc.load(place)
    assert found["n"] == winners[0]
    assert (found["a"] == winners[0]).all()


def run_script(script):
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


def test_the_interpreter_waits_for_a_running_save(tmp_path):
    done = run_script(f"""
import numpy as np, holdfast_checkpointer as hc
hc.save_async({str(tmp_path / "c")!r}, {{"a": np.arange(3_000_000.0)}})
""")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert hc.load(tmp_path / "c")["a"][-1] == 2_999_999


def test_a_failure_that_nobody_asked_for_is_reported_at_the_exit_once(tmp_path):
    done = run_script(f"""
import holdfast_checkpointer as hc
hc.save({str(tmp_path / "c")!r}, 1)
hc.save_async({str(tmp_path / "c")!r}, 2)
told = hc.save_async({str(tmp_path / "c")!r}, 3)
assert told.exception() is not None
""")
    assert done.returncode == 0
    assert done.stderr.count("failed and nobody asked") == 1
    assert "CommitConflictError" in done.stderr
