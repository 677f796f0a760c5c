"""The garbage collector is paused for a burst, and back as it was afterwards."""

import gc
import threading

import numpy as np
import pytest

import holdfast_checkpointer as hc
from holdfast_checkpointer.bursts import uncollected


def test_the_collector_is_back_after_the_last_burst_and_after_an_error():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with pytest.raises(ZeroDivisionError), uncollected():
            raise ZeroDivisionError
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_saves_and_loads_from_many_threads_leave_it_on(tmp_path):
    def work(number):
        hc.save(tmp_path / str(number), {"a": [np.ones(2)] * 50})
        hc.load(tmp_path / str(number))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.isenabled()
