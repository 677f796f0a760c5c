"""When a run's lease is taken and let go, in one process."""

import gc
import os
import subprocess
import time

import numpy as np
import pytest

from holdfast_manager import training
from holdfast_storage import (
    StoragePermissionError,
    get_loop,
    open_backend,
)
from holdfast_storage.lease.epochs import list_epochs, read_epoch


def state(value):
    return {"w": np.full(3, value, np.float32)}


def lease(place):
    backend = open_backend(place)

    async def highest():
        return await read_epoch(backend, max(await list_epochs(backend)))

    return get_loop().run(highest())


def test_a_run_that_is_dropped_without_a_close_is_let_go(place):
    run = training.Checkpointer(place)
    run.save(1, state(1))
    run.wait()
    assert not lease(place).released
    del run
    gc.collect()
    deadline = time.monotonic() + 30
    while not lease(place).released:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_opening_and_loading_take_no_lease(place):
    with training.Checkpointer(place) as run:
        run.save(1, state(1))
    before = lease(place)
    with training.Checkpointer(place) as run, run.reading(1):
        assert run.load()["w"][0] == 1
        assert run.explain()
    assert lease(place) == before


@pytest.fixture
def small_disk(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(mount)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small tmpfs needs root and the permission to mount")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_read_only_mount_is_opened_listed_and_loaded(small_disk):
    place = small_disk / "run"
    with training.Checkpointer(place) as run:
        run.save(1, state(1))
        run.save(2, state(2))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        with training.Checkpointer(place) as run:
            assert [entry.step for entry in run.checkpoints] == [1, 2]
            assert run.load()["w"][0] == 2
            assert run.load(1)["w"][0] == 1
            assert all(verdict.kept for verdict in run.explain())
            with pytest.raises(StoragePermissionError, match="Read-only"):
                run.save(3, state(3))
            assert [entry.step for entry in run.checkpoints] == [1, 2]
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
