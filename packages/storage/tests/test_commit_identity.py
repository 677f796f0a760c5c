import dataclasses
import os
import subprocess
import sys

import pytest

from holdfast_storage.commit import identity

pytestmark = pytest.mark.skipif(
    not identity._boot_id(), reason="proof needs /proc; elsewhere nobody is taken for gone"
)


def mark_of(pid):
    own = identity.new_mark("a" * 32, "save")
    return dataclasses.replace(own, pid=pid, process_start=identity._process_start(pid))


def test_this_process_is_not_gone():
    assert not identity.is_gone(mark_of(os.getpid()))


def test_a_process_that_ended_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(child.pid)
    assert not identity.is_gone(mark)
    child.communicate(b"\n")
    assert identity.is_gone(mark)


def test_a_process_that_ended_and_was_not_waited_for_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(child.pid)
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert identity.is_gone(mark)
    child.wait()


def test_a_reused_pid_is_told_apart():
    assert identity.is_gone(dataclasses.replace(mark_of(os.getpid()), process_start="1"))


def test_a_process_that_proc_hides_is_not_gone(monkeypatch):
    mark = mark_of(os.getpid())
    real = identity._read
    monkeypatch.setattr(identity, "_read", lambda p: "" if p.endswith("/stat") else real(p))
    assert not identity.is_gone(mark)


@pytest.mark.parametrize(
    "other", [{"host": "elsewhere"}, {"boot_id": "another"}, {"pid_namespace": "pid:[1]"}]
)
def test_what_cannot_be_proven_is_not_gone(other):
    mark = dataclasses.replace(mark_of(os.getpid()), process_start="1", **other)
    assert not identity.is_gone(mark)
