"""How a program ends while a save runs: in processes of their own."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

import holdfast_checkpointer as hc

# Saves to paths that end in "stops" or "stays" hang; only the first lets itself be stopped.
HANGING = """
import asyncio, multiprocessing, signal, sys, threading, time
import numpy as np
import holdfast_checkpointer as hc
from holdfast_checkpointer.engine import outstanding
from holdfast_storage.commit import carry_through

write = hc.functions.write_checkpoint

async def hang(backend, final, *args, **kwargs):
    if final.endswith("stays"):
        await carry_through(asyncio.to_thread(time.sleep, 600))  # as a dead mount holds a thread
    if final.endswith("stops"):
        await asyncio.sleep(600)
    return await write(backend, final, *args, **kwargs)

hc.functions.write_checkpoint = hang
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
outstanding.SAYS_EVERY_S = 0.2
outstanding.TIDYING_S = 0.5
root = sys.argv[1]
"""


@pytest.fixture
def script(tmp_path):
    """Starts a program; its text begins with the saves that hang."""
    started = []

    def start(body, **env):
        process = subprocess.Popen(
            [sys.executable, "-c", HANGING + textwrap.dedent(body), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with process:  # waits, and closes its pipes
            process.kill()


def test_an_error_of_the_program_and_an_exit_in_a_thread_lose_no_save(script, tmp_path):
    ended = script(
        """
        def save():
            hc.save_async(f"{root}/thread", {"a": np.arange(2_000_000.0)})
            sys.exit(5)

        threading.Thread(target=save).start()
        hc.save_async(f"{root}/main", {"a": np.arange(2_000_000.0)})
        raise ZeroDivisionError
        """
    )
    _, said = ended.communicate(timeout=120)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in said
    assert "failed" not in said
    assert hc.verify(tmp_path / "thread").ok
    assert hc.verify(tmp_path / "main").ok


def test_the_exit_says_what_it_waits_for_and_ends_in_the_time_it_is_given(script, tmp_path):
    ended = script(
        """
        hc.save_async(f"{root}/stops", {"a": 1})
        hc.save_async(f"{root}/stays", {"a": 1})
        hc.save_async(f"{root}/well", {"a": 1})
        sys.exit(3)
        """,
        HOLDFAST_EXIT_TIMEOUT_SECS="0.5",
    )
    _, said = ended.communicate(timeout=120)
    assert ended.returncode == 3
    assert "the exit has waited 0 s for the save to" in said
    assert "/stops was stopped: HOLDFAST_EXIT_TIMEOUT_SECS=0.5" in said
    assert "/stays was given up, for it did not stop" in said
    assert "/stops was given up" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["well"]


def test_an_interrupted_exit_stops_the_save_and_a_second_interrupt_gives_it_up(script):
    ended = script(
        """
        outstanding.TIDYING_S = 600
        hc.save_async(f"{root}/stays", {"a": 1})
        """
    )
    for awaited in ("the exit has waited", "stopping what still runs"):
        for line in ended.stderr:
            if awaited in line:
                break
        ended.send_signal(signal.SIGINT)
    _, said = ended.communicate(timeout=60)
    assert "/stays was given up" in said
    assert "interrupted twice" in said
    assert ended.returncode == 0


def test_a_forked_child_does_not_wait_for_the_saves_of_its_parent(script, tmp_path):
    ended = script(
        """
        opened = threading.Event()

        async def held(*args, **kwargs):
            await asyncio.to_thread(opened.wait)
            return await write(*args, **kwargs)

        hc.functions.write_checkpoint = held
        hc.save_async(f"{root}/parent", {"a": 1})
        child = multiprocessing.get_context("fork").Process(target=print)
        child.start()
        child.join(30)
        print("child", child.exitcode, flush=True)
        child.kill()
        opened.set()
        """
    )
    told, said = ended.communicate(timeout=60)
    assert told.endswith("child 0\n"), said
    assert ended.returncode == 0
    assert hc.verify(tmp_path / "parent").ok


def test_what_is_no_time_to_wait_is_said_and_the_exit_waits(script, tmp_path):
    ended = script(
        """
        hc.save_async(f"{root}/well", {"a": np.arange(1_000_000.0)})
        """,
        HOLDFAST_EXIT_TIMEOUT_SECS="soon",
    )
    _, said = ended.communicate(timeout=60)
    assert "HOLDFAST_EXIT_TIMEOUT_SECS='soon' is not a number of seconds" in said
    assert hc.verify(tmp_path / "well").ok
