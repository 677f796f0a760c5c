"""Which private name of JAX has moved, if one has."""

import inspect
import socket
import subprocess
import sys

import jax
import pytest
from jax._src import distributed

from holdfast_checkpointer.multihost import jax_service
from holdfast_checkpointer.multihost.errors import CoordinationError

# One process is a job too; the service answers as it does to many.
JOB = """
import asyncio, sys, time
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 1, 0)
from holdfast_checkpointer.multihost.jax_service import JaxService, process_count, process_index
from holdfast_checkpointer.multihost.service import KeyTaken

async def main():
    service = JaxService()
    await service.put("a/b", b"\\x00\\xff")
    try:
        await service.put("a/b", b"other")
    except KeyTaken:
        print("taken is told")
    await service.put("a/b", b"\\x00new", overwrite=True)
    await service.put("a/c/d", b"")
    assert await service.get("a/b", timeout_s=5) == b"\\x00new"
    assert await service.list("a") == {"a/b": b"\\x00new", "a/c/d": b""}, await service.list("a")
    assert await service.list("nothing") == {}
    try:
        await service.get("absent", timeout_s=0.05)
    except TimeoutError:
        print("a deadline is told")
    assert [await service.increment("n"), await service.increment("n")] == [1, 2]
    await service.delete("a")
    assert await service.list("a") == {}
    await service.delete("a")
    assert (process_index(), process_count()) == (0, 1)
    print("deleted")

asyncio.run(main())
"""


@pytest.mark.parametrize("name", ["client", "process_id", "num_processes"])
def test_the_state_of_the_runtime_has_what_is_asked_of_it(name):
    assert hasattr(distributed.global_state, name), f"jax {jax.__version__} moved {name}"


@pytest.mark.parametrize("name", jax_service.CLIENT_METHODS)
def test_the_client_has_each_method_that_is_called(name):
    from jax._src.lib import _jax

    client = _jax.DistributedRuntimeClient
    assert callable(getattr(client, name, None)), f"jax {jax.__version__} moved {name}"


def test_every_method_that_is_called_is_in_the_list():
    called = {
        line.split("self._client.")[1].split("(")[0]
        for line in inspect.getsource(jax_service.JaxService).splitlines()
        if "self._client." in line
    }
    assert called == set(jax_service.CLIENT_METHODS)


def test_without_jax_distributed_it_says_what_to_call():
    with pytest.raises(CoordinationError, match=r"jax\.distributed\.initialize"):
        jax_service.JaxService()
    assert jax_service.process_index() == 0
    assert jax_service.process_count() == 1


def test_the_service_of_this_jax_does_what_the_protocol_asks():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(port)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.split("\n") == ["taken is told", "a deadline is told", "deleted", ""], (
        done.stderr
    )
